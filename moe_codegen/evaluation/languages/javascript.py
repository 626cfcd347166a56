"""JavaScript, run by node."""

from moe_codegen.evaluation.languages.language import Language, Tool

# Loaded before the program, so that what the tests will assert with cannot be replaced by it.
FROZEN_ASSERT = "Object.freeze(require('node:assert')); Object.freeze(require('node:assert').strict);\n"


def with_marker(tests: str, first: str, second: str) -> str:
    """The tests, and then the marker."""
    return f"{tests}\n;require('node:assert')(require('node:fs').writeSync(1, '{first}' + '{second}'));\n"


def status(stderr: str) -> str:
    """MultiPL-E's, in its order."""
    marks = {"ERR_ASSERTION": "AssertionError", "SyntaxError": "SyntaxError", "ReferenceError": "ReferenceError"}
    return next((status for mark, status in marks.items() if mark in stderr), "Exception")


NODE = Tool("node", "nodejs")
JAVASCRIPT = Language(
    name="js",
    title="JavaScript",
    source="program.js",
    tools=(NODE,),
    run=("node", "--require", "./assert.js", "program.js"),
    run_seconds=5,
    with_marker=with_marker,
    status=status,
    support={"assert.js": FROZEN_ASSERT},
    invalid_marks=("SyntaxError",),
    assertion_marks=("ERR_ASSERTION",),
    memory_marks=("heap out of memory", "Array buffer allocation failed"),
)
