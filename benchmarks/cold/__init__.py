"""Cold start, figure by figure, each against its target: ``python -m benchmarks.cold``."""
