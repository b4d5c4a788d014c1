"""Tests of the whole: processes, documents, benchmarks, and the direction of imports."""
