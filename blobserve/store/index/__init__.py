"""The index of one layer or of several: entries, whiteouts and path resolution, in SQLite.

Blocking, without Twisted. It does not read compressed bytes, and does not know where blobs lie.
"""
