"""Tests of `blobserve.store.pull`."""
