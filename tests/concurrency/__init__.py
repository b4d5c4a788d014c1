"""Tests of `blobserve.concurrency`."""
