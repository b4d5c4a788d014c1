"""Scenarios in which a blob space is killed, or the disk fails it, at each call of the kernel.

`images` and `scenarios` say what is done; ``python -m tests.faults.crashing`` does it, to be run
under strace by `tests.support.parts.inject`; `aftermath` says what must be true of what is left.
"""
