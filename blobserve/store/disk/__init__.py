"""The blob space as files: its directory, metadata in SQLite, codings, errors, the page cache.

No module in this folder knows the format of an index or an image.
"""
