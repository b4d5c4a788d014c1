"""Tests of `blobserve.oci.registry`."""
