"""Tests of `blobserve.web.http`."""
