"""The tests of blobserve; see `tests.support.parts` for the real parts they run against."""
