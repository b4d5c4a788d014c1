"""Connections: reading heads, limits and timeouts, sending bodies, the fast path, the access log.

Nothing here decides what a response says.
"""
