"""Tests of `blobserve.store`."""
