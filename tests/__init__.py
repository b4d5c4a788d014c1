"""The tests of blobserve; `tests.support.parts` has the real programs that they run against."""
