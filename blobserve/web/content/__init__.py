"""From a file of an image to a representation: selection, variants, rewriting, listings, caching.

These modules make responses, and write nothing to connections.
"""
