"""A READY blob on disk: opened, read, checked, compressed for clients, and recovered.

Eviction is decided elsewhere.
"""
