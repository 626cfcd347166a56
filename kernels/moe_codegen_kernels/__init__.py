"""Grouped-GEMM expert kernels: knows torch, and triton when present; nothing of transformers."""
