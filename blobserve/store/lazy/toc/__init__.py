"""Tables of contents of eStargz and zstd:chunked layers: parsed strictly, turned into an index.

Blocking and pure of Twisted. Nothing here fetches anything.
"""
