"""The tests of blobserve; see `tests.rig` for the real parts they run against."""
