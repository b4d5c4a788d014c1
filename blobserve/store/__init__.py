"""Layers on disk: reading, indexing, bounding, leasing."""
