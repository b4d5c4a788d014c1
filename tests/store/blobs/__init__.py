"""Tests of `blobserve.store.blobs`."""
