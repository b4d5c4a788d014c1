"""Tests of `blobserve.store.index`."""
