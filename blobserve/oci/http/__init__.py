"""The HTTP client for registries: treq, redirects, TLS, retries, address rules.

It does not know the Distribution API: no manifests, blobs or tokens.
"""
