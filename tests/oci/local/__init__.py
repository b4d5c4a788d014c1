"""Tests of `blobserve.oci.local`."""
