"""Tests of `blobserve.store.space`."""
