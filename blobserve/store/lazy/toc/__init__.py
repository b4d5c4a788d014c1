"""Tables of contents of eStargz and zstd:chunked layers: strict parsing, and building an index.

Blocking, without Twisted. It fetches nothing.
"""
