"""From a reference to an image: the digest of a tag, its freshness, and missing images.

No module of this folder downloads a layer.
"""
