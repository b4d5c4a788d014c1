"""Tests of `blobserve.store.ingest`."""
