"""Sources of images, registries and local files; manifests and credentials."""
