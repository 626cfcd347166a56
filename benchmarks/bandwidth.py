"""How fast this machine reads memory: what weights that are used once can be held against."""

import time

import torch

from moe_codegen_kernels.cpu.products import product

STREAMED_BYTES = 2**30  # more than any cache holds
COLUMNS = 2048
REPEATS = 6


def read_bandwidth() -> float:
    """Bytes read per second, by the fastest of what torch and the kernels read most simply."""
    streamed = torch.ones(STREAMED_BYTES // 4)
    matrix_NK, row_1K = streamed.view(-1, COLUMNS), torch.ones(1, COLUMNS)
    offsets_E = torch.tensor([0, 1], dtype=torch.int32)
    readers = (
        streamed.sum,
        streamed.max,
        lambda: matrix_NK @ row_1K[0],
        lambda: product(row_1K, matrix_NK[None], None, offsets_E),
    )
    best = float("inf")
    for reader in readers * REPEATS:
        start = time.perf_counter()
        reader()
        best = min(best, time.perf_counter() - start)
    return STREAMED_BYTES / best
