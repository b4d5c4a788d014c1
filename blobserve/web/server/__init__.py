"""Connections: reading heads, limits and timeouts, sending bodies, the fast path, the access log.

These modules do not decide the content of responses, except for errors in request heads.
"""
