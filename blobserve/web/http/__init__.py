"""RFC 9110 and 9112 as values: targets, fields, conditions, ranges, statuses, responses.

Pure, except that some modules use types of Twisted. Independent of images and connections.
"""
