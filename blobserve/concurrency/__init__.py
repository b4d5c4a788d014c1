"""General concurrency: thread pools, single flight, fair queues.

No module in this folder knows a layer, a registry or a request.
"""
