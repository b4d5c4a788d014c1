"""Tests of `blobserve.daemon`."""
