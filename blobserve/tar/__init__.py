"""Strict tar readers: headers, names, the member list of an archive, streams.

Pure: bytes in, values out. Nothing here opens a file or imports Twisted.
"""
