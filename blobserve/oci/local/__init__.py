"""Local images: OCI layouts, OCI archives and Docker archives. Nothing uses the network."""
