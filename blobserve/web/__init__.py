"""HTTP: from a request to a file of an image, and from the file to bytes on the wire."""
