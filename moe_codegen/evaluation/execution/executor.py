"""Programs judged by several workers while others are still being written."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType

from moe_codegen.errors import InfrastructureError
from moe_codegen.evaluation.execution.judge import Judge
from moe_codegen.evaluation.execution.outcome import Outcome, Submission
from moe_codegen.evaluation.languages import Language
from moe_codegen.evaluation.sandbox import Sandbox

_WATCH_SECONDS = 0.05
_Job = tuple[Submission, "Future[Outcome]"]


class Executor:
    """A queue of programs and `workers` threads that judge them.

        with Executor(sandbox, languages, workers=2) as executor:
            future = executor.submit(submission)
            executor.finish()
            outcome = future.result()

    A program that ran out of time without having computed all the time, or that could not be judged, is set aside and
    tried once more in `finish`, alone. Leaving the `with` early drops what still waits.
    """

    def __init__(
        self, sandbox: Sandbox, languages: Sequence[Language], *, workers: int, memory_bytes: int = 1 << 30
    ) -> None:
        self._judges = {language.name: Judge(language, sandbox, memory_bytes) for language in languages}
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._aside: list[_Job] = []
        self._threads = [threading.Thread(target=self._work, args=(worker,)) for worker in range(workers)]

    def submit(self, submission: Submission) -> "Future[Outcome]":
        """Have a program judged."""
        future: Future[Outcome] = Future()
        self._jobs.put((submission, future))
        return future

    def finish(self, watch: Callable[[], None] = lambda: None) -> None:
        """Wait until every program is judged; those set aside come last, one at a time. `watch` is called meanwhile."""
        while self._jobs.unfinished_tasks:
            time.sleep(_WATCH_SECONDS)
            watch()
        for submission, future in self._aside:
            try:
                future.set_result(self._judge(submission, 0)[0])
            except Exception as error:
                future.set_exception(error)
            watch()
        self._aside.clear()
        watch()

    def __enter__(self) -> "Executor":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._jobs.empty():
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[1].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for judge in self._judges.values():
            judge.close()

    def _judge(self, submission: Submission, worker: int) -> tuple[Outcome, bool]:
        return self._judges[submission.language].judge(submission, worker)

    def _work(self, worker: int) -> None:
        while (job := self._jobs.get()) is not None:
            submission, future = job
            try:
                outcome, doubtful = self._judge(submission, worker)
                if doubtful:
                    self._aside.append(job)
                else:
                    future.set_result(outcome)
            except InfrastructureError:
                self._aside.append(job)
            except Exception as error:
                future.set_exception(error)
            self._jobs.task_done()
