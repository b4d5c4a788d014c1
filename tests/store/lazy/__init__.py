"""Tests of `blobserve.store.lazy`."""
