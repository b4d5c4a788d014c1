"""blobserve: single files out of OCI image layers, over HTTP."""
