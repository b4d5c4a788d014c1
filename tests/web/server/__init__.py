"""Tests of `blobserve.web.server`."""
