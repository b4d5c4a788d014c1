"""What `twist` reads to know of blobserve; everything else is imported when it is asked for."""

from twisted.application.service import ServiceMaker

blobserve = ServiceMaker(
    "blobserve",
    "blobserve.daemon.plugin",
    "Single files out of image layers, over HTTP.",
    "blobserve",
)
