"""From the compressed bytes of a layer to its content and index.

Blocking, in steps, without Twisted. Nothing here decides where files go or who may write.
"""
