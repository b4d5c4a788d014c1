"""Scenarios in which a blob space is killed, or the disk fails it, at each call of the kernel.

`images` and `scenarios` say what is done; ``python -m tests.crashing`` does it, to be run under
strace by `tests.rig.inject`; `aftermath` says what must be true of what is left.
"""
