"""Cold starts, each figure against its target: ``python -m benchmarks.cold``."""
