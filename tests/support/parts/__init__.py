"""Real parts for tests: programs of the system, run on loopback for the length of one test.

A part that is not installed skips the test that asked for it, by name; with the environment
variable ``BLOBSERVE_REQUIRE_PARTS=1`` a skipped test counts as failed. No room here knows anything
of how blobserve works inside.
"""
