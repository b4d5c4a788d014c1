"""Lazy pulling: eStargz and zstd:chunked layers are served chunk by chunk while they are pulled.

Such a layer has a table of contents, and the manifest has its digest. Each chunk is checked against
the table. Nothing is stored: once the layer is READY, it is served from its own index.
`blobserve.store.lazy.toc` parses the tables.
"""
