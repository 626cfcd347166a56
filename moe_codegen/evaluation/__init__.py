"""Evaluation by running what a model writes: MultiPL-E in a sandbox, pass@k, and two models side by side."""
