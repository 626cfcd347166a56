import pytest

from moe_codegen.evaluation.execution import Executor
from moe_codegen.evaluation.languages import find_language
from moe_codegen.evaluation.sandbox import open_sandbox


@pytest.fixture(scope="session")
def sandbox():
    """A sandbox that has passed its own test."""
    return open_sandbox("bubblewrap")


@pytest.fixture(scope="session")
def judged(sandbox):
    """A function: submissions in one language -> their outcomes, compilers and workers kept between calls."""
    executors = {}

    def judge(language, *submissions):
        if isinstance(language, str):
            language = find_language(language)
        if language.name not in executors:
            executors[language.name] = Executor(sandbox, [language], workers=2)
            executors[language.name].__enter__()
        executor = executors[language.name]
        futures = [executor.submit(submission) for submission in submissions]
        executor.finish()
        return [future.result() for future in futures]

    yield judge
    for executor in executors.values():
        executor.__exit__(None, None, None)
