"""The extraction of a layer: from its compressed bytes to its content and index.

Blocking, in steps, without Twisted. Paths and reservations are decided elsewhere.
"""
