"""Tests of `blobserve.oci`."""
