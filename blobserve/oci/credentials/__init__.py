"""Credentials: config.json of container tools, and credential helpers. Sends no requests."""
