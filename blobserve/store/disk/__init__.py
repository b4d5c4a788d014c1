"""The blob space as files: its directory, metadata in SQLite, codings, errors, the page cache.

Nothing here knows the format of an index or an image.
"""
