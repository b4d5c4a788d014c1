"""Tests of `blobserve.web`."""
