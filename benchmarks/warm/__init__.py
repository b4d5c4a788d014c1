"""Warm serving against its peers, each server on one core: ``python -m benchmarks.warm``."""
