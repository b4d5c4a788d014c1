"""Images without a registry: OCI layouts and archives, and what `docker save` writes.

Nothing here uses the network.
"""
