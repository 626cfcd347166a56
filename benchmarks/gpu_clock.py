"""How long something takes on a device and on the host, and what the device can do at most, measured the same way."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

FLUSHED_BYTES = 256 * 2**20  # more than any L2 cache holds
FLUSH_MICROSECONDS = 30  # no GPU reads them faster
STREAMED_BYTES = 4 * 2**30
PEAK_EXTENT = 8192


class Quantiles(NamedTuple):
    """Of times in ms."""

    p20: float
    p50: float
    p80: float


class Limits(NamedTuple):
    """What the device reaches at most: a bf16 product of torch's in TFLOP/s, and reading memory in GB/s."""

    teraflops: float
    gigabytes: float


def quantiles_of(step: Callable[[], Any], repeats: int, device: str, graph: bool = False) -> Quantiles:
    """Times of `step`, or of its CUDA graph, after three runs; on a GPU by events, with other bytes in L2 before each.

    They are read, for what is written there `step` would have to write back to memory; and until the host is ahead of
    the device, as it is in the middle of a model: what launching costs is `host_microseconds`.
    """
    for _ in range(3):
        step()
    if device != "cuda":
        times = [_seconds(step) * 1e3 for _ in range(repeats)]
    else:
        step = _captured(step) if graph else step
        others = torch.zeros(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)
        flushes = 1 + int(host_microseconds(step, 5) / FLUSH_MICROSECONDS)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            for _ in range(flushes):
                others.sum()
            start.record()
            step()
            end.record()
            end.synchronize()
        times = [start.elapsed_time(end) for start, end in events]
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Quantiles(deciles[1], deciles[4], deciles[7])


def host_microseconds(step: Callable[[], Any], repeats: int = 20) -> float:
    """Median time until `step` returns, with nothing before it in the device's queue: what launching costs the host."""
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(_seconds(step) * 1e6)
    return statistics.median(times)


def peak_bytes(step: Callable[[], Any]) -> int:
    """Memory of the GPU that `step` holds at its peak above what was held before, its results included."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def limits_of(device: str, repeats: int) -> Limits:
    """A square product, and the faster of two ways to move 4 GiB: read all, or read half and write as much."""
    square = torch.randn(PEAK_EXTENT, PEAK_EXTENT, dtype=torch.bfloat16, device=device)
    product_ms = quantiles_of(lambda: square @ square, repeats, device).p50
    streamed = torch.ones(STREAMED_BYTES // 4, dtype=torch.float32, device=device)
    half = streamed[: streamed.numel() // 2]
    read_ms = min(
        quantiles_of(streamed.sum, repeats, device).p50,
        quantiles_of(lambda: half.copy_(streamed[half.numel() :]), repeats, device).p50,
    )
    return Limits(2 * PEAK_EXTENT**3 / product_ms / 1e9, STREAMED_BYTES / read_ms / 1e6)


def _captured(step: Callable[[], Any]) -> Callable[[], None]:
    """`step` as a CUDA graph; it must have run before, on a side stream too, as capture wants it.

    A capture that fails leaves its stream current: the outer `with` goes back.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        step()
    return graph.replay


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
