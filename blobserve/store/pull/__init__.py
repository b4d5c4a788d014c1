"""Pulls of images, downloads with permits, revalidation of tags, and prePull.

No module of this folder knows the HTTP requests of clients.
"""
