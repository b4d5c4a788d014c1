"""The quota: reservations, eviction, leases of READY blobs, repair, and merged indexes.

Nothing here downloads or knows a registry.
"""
