"""Credentials: config.json of container tools, and credential helpers.

Nothing here sends a request.
"""
