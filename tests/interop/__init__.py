"""Interoperability: real builders and real registries against a real blobserve process.

`python -m tests.interop` runs all of it and writes docs/compatibility.md. `test_debian` is the part
that needs Debian packages alone.
"""
