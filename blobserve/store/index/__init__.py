"""The index of a layer or of several: entries, whiteouts, path resolution, in SQLite.

Blocking and pure of Twisted. Nothing here reads compressed bytes or knows where a blob lies.
"""
