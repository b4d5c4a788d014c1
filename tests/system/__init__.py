"""The whole of it: processes, promises, documents, benchmarks, the direction of imports."""
