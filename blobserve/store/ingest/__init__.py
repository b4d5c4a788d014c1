"""One layer coming in: its bytes queued, extracted in threads, verified and published.

No module in this folder knows the origin of the bytes.
"""
