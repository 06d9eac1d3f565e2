"""Implementations of the `Provider` and `Embedder` ports."""
