"""Benchmarks: one registry, one runner, one file per case; `python -m benchmarks` lists and runs them."""
