"""Values that name things: digests, references, platforms.

Pure: parse and compare. Nothing here does I/O or imports Twisted.
"""
