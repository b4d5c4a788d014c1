"""Lazy pulling: eStargz and zstd:chunked layers are served chunk by chunk while they are pulled.

Such a layer carries a table of contents, and the manifest says its digest. Each chunk is checked
against that table. Nothing of it is kept: once the layer is READY its own index counts.
Nothing here parses a table; that is `blobserve.store.lazy.toc`.
"""
