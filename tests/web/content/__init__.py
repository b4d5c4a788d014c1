"""Tests of `blobserve.web.content`."""
