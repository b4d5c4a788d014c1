"""HTTP: from a request to an entry, from an entry to bytes on the wire."""
