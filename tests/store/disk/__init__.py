"""Tests of `blobserve.store.disk`."""
