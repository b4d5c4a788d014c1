"""From a file of an image to a representation: selection, variants, rewriting, listings, caching.

Nothing here writes to a connection.
"""
