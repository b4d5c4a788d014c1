"""Tests of `blobserve.store.refs`."""
