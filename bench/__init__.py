"""The project's own benchmarks; see README.md."""
