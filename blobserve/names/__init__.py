"""Values that name things: digests, references, platforms, hosts, proxies.

Pure: parse and compare. Nothing here does I/O or imports Twisted.
"""
