"""Notifications of registries: shapes, secrets, and the places that take them.

See docs/reference/webhooks.md.
"""
