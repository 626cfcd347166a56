"""The completions of one folder on their way to result files."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from moe_codegen.errors import ResultError
from moe_codegen.evaluation.execution.executor import Executor
from moe_codegen.evaluation.execution.log import OutcomeLog
from moe_codegen.evaluation.execution.outcome import Kind, Outcome, Submission, submissions_of
from moe_codegen.evaluation.multipl_e import Completions, read_results, result_files, write_results
from moe_codegen.evaluation.run_folder import OUTCOMES_FILE


class FolderJudge:
    """Has the programs of one folder judged, each text once, and writes MultiPL-E's result files.

    Args:
        folder: where the completions are and the results go.
        executor: judges; several folders may share it.
        conditions: under which, see `OutcomeLog`.
    """

    def __init__(self, folder: Path, executor: Executor, conditions: Mapping[str, Any]) -> None:
        self._folder, self._executor = folder, executor
        self._log = OutcomeLog(folder / OUTCOMES_FILE, conditions)
        self._futures: dict[str, Future[Outcome]] = {}
        self._results = {name: read_results(path) for name, path in result_files(folder).items()}

    @property
    def counts(self) -> tuple[int, int]:
        """Programs judged since the start, and programs handed in."""
        return sum(future.done() for future in self._futures.values()), len(self._futures)

    def submit(self, completions: Completions) -> None:
        """Have those programs judged that have no outcome yet and are not on their way."""
        if self._has_results(completions):
            return
        for submission in submissions_of(completions):
            sha256 = submission.sha256
            if sha256 not in self._log and sha256 not in self._futures:
                self._futures[sha256] = self._submit(submission)

    def write(self, completions: Completions) -> Counter[Kind]:
        """Write the results of one problem, if they are not there yet; returns how often each kind occurred.

        Results that another evaluator wrote stay as they are, and have no kinds.

        Raises:
            InfrastructureError: a program could not be judged, twice.
        """
        submissions = submissions_of(completions)
        if self._has_results(completions):
            known = [submission.sha256 for submission in submissions if submission.sha256 in self._log]
            return Counter(self._log[sha256].kind for sha256 in known)
        outcomes = [self._outcome(submission) for submission in submissions]
        results = [
            outcome.as_result(submission.program) for outcome, submission in zip(outcomes, submissions, strict=True)
        ]
        write_results(self._folder, completions, results)
        return Counter(outcome.kind for outcome in outcomes)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _submit(self, submission: Submission) -> "Future[Outcome]":
        future = self._executor.submit(submission)

        def keep(done: "Future[Outcome]") -> None:
            if not done.cancelled() and done.exception() is None:
                self._log.append(submission.sha256, done.result())

        future.add_done_callback(keep)
        return future

    def _outcome(self, submission: Submission) -> Outcome:
        sha256 = submission.sha256
        return self._log[sha256] if sha256 in self._log else self._futures[sha256].result()

    def _has_results(self, completions: Completions) -> bool:
        """Whether a problem's result file is there and whole; `ResultError` where it is of other programs."""
        found = self._results.get(completions.name)
        if found is None:
            return False
        programs, judged = completions.programs, [result.program for result in found.results]
        if judged != programs[: len(judged)]:
            raise ResultError(
                f"{result_files(self._folder)[completions.name]} was made from other completions than those beside it; "
                "remove it to judge these"
            )
        return len(judged) == len(programs)
