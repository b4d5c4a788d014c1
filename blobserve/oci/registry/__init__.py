"""The OCI Distribution API: manifests, blobs, ranges, and token authentication.

`blobserve.oci.http` sends the requests.
"""
