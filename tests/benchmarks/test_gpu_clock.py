"""Times are quantiles of what was measured."""

from benchmarks import gpu_clock


def test_quantiles_of_few_times_lie_among_them(monkeypatch):
    seconds = iter((0.001, 0.1))
    monkeypatch.setattr(gpu_clock, "_seconds", lambda step: next(seconds))
    assert all(1 <= ms <= 100 for ms in gpu_clock.quantiles_of(lambda: None, 2, "cpu"))
