"""The OCI Distribution API: manifests, blobs, ranges, and token authentication.

How a request gets to a host is left to `blobserve.oci.http`.
"""
