"""Tests of `blobserve.oci.http`."""
