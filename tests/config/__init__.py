"""Tests of `blobserve.config` and `blobserve.configfile`."""
