"""RFC 9110 and 9112 as values: targets, fields, conditions, ranges, statuses, responses.

Pure but for names of Twisted. Nothing here knows images or connections.
"""
