"""HTTP for registries: treq, redirects, TLS, retries, and which addresses may be connected to.

Nothing here knows the Distribution API: no manifest, no blob, no token.
"""
