"""Scenarios in which a blob space is killed, or its disk fails, at each system call.

`images` and `scenarios` define the work. ``python -m tests.faults.crashing`` does it under strace,
started by `tests.support.parts.inject`. `aftermath` checks the blob space that remains.
"""
