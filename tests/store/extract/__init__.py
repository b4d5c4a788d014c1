"""Tests of `blobserve.store.extract`."""
