"""Tests of `blobserve.tar`."""
