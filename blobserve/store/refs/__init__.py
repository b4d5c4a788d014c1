"""From a reference to an image: what a tag serves, how fresh that is, what does not exist.

Nothing here downloads a layer.
"""
