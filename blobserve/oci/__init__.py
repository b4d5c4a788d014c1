"""Images as registries know them: names, manifests, credentials, and the two sources."""
