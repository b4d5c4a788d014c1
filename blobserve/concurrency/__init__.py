"""Concurrency that knows nothing of images: thread pools, single flight, fair queues.

Nothing here names a layer, a registry or a request.
"""
