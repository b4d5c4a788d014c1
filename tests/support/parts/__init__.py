"""Real programs of the system for tests, run on loopback for the length of one test.

If a program is not installed, the test that needs it is skipped with its name. With the environment
variable ``BLOBSERVE_REQUIRE_PARTS=1`` a skipped test counts as failed. These modules know nothing
of the inside of blobserve.
"""
