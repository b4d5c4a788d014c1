"""Tests of `blobserve.oci.credentials`."""
