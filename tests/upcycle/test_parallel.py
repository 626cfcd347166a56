"""Tasks that stop together, at whatever moment the user interrupts."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moe_codegen.upcycle.parallel import run_parallel


def test_tasks_give_their_results_in_order():
    advanced = []

    def task(number, advance):
        time.sleep(0.01 * (3 - number))
        advance(number)
        return number

    assert run_parallel([lambda a, n=n: task(n, a) for n in range(4)], 3, advanced.append) == [0, 1, 2, 3]
    assert sum(advanced) == 6


def test_when_one_fails_the_others_stop_and_its_error_is_the_one_raised():
    stopped = []

    def fail(advance):
        time.sleep(0.02)
        raise ValueError("mine")

    def run_for_ever(advance):
        try:
            while True:
                advance(1)
                time.sleep(0.001)
        except BaseException:
            stopped.append(True)
            raise

    never = []
    tasks = [run_for_ever, fail, lambda advance: never.append(1)]
    with pytest.raises(ValueError, match="mine"):
        run_parallel([run_for_ever, *tasks], 3)
    assert stopped == [True, True]


def test_nothing_runs_when_the_interrupt_comes_while_the_threads_are_started(monkeypatch):
    start = ThreadPoolExecutor._adjust_thread_count

    def interrupted(pool):
        start(pool)
        pool._threads.clear()  # as Ctrl-C leaves it between the thread's start and its registration
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "_adjust_thread_count", interrupted)
    ran = []
    with pytest.raises(KeyboardInterrupt):
        run_parallel([ran.append] * 3, 2)
    assert not ran
