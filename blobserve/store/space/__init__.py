"""The quota: reservations, eviction, leases of READY blobs, repair, and merged indexes.

No module in this folder knows a registry or downloads anything.
"""
