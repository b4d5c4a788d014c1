"""Strict reading of tar: headers, names, the member list of an archive, a stream reader.

Pure: bytes in, values out. Nothing here opens a file or imports Twisted.
"""
