"""Published indexes: serving files of a layer by the index that its maker put into it.

eStargz and zstd:chunked layers carry a table of contents, and the manifest says its digest. Until
such a layer is READY, its files are served out of it chunk by chunk, each checked against what that
table says. Nothing of it is kept: once the layer is READY its own index is what counts.
"""
