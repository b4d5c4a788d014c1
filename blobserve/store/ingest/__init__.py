"""One layer coming in: its bytes queued, extracted in threads, verified and published.

Nothing here knows where the bytes come from.
"""
