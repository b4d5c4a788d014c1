"""Pulls: layers fetched and ingested, downloads with permits, revalidation of tags, pre-pulls.

Nothing here knows HTTP requests of clients.
"""
