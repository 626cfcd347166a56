"""Python, run by the system's python3."""

from moe_codegen.evaluation.languages.language import Language, Tool


def _with_marker(tests: str, first: str, second: str) -> str:
    return f'{tests}\nassert __import__("os").write(1, b"{first}" b"{second}")\n'


PYTHON = Language(
    name="py",
    title="Python",
    source="program.py",
    tools=(Tool("python3", "python3"),),
    run=("python3", "program.py"),
    run_seconds=15,
    with_marker=_with_marker,
    status=lambda stderr: "SyntaxError" if "SyntaxError" in stderr else "Exception",
    invalid_marks=("SyntaxError", "IndentationError", "TabError"),
    assertion_marks=("AssertionError",),
    memory_marks=("MemoryError",),
)
