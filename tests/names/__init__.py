"""Tests of `blobserve.names`."""
