"""A READY blob on disk: opened, read, checked, compressed for clients, and recovered.

Nothing here chooses which blob is kept or evicted.
"""
