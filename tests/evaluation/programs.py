"""Problems of our own in MultiPL-E's form, with completions that pass and completions that must not."""

import shutil
from dataclasses import replace

import pytest

from moe_codegen.evaluation.execution import Submission
from moe_codegen.evaluation.languages import LANGUAGES, find_language
from moe_codegen.evaluation.problems import Problem

CPP = "#include<assert.h>\n#include<bits/stdc++.h>\n"
JAVA = "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n"
PROMPTS = {  # language -> prompt, tests, stop tokens of "twice"
    "py": (
        "def twice(number: int) -> int:\n",
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-3) == -6\n\ncheck(twice)\n",
        ("\ndef", "\n#", "\nif", "\nclass"),
    ),
    "js": (
        "function twice(number){\n",
        "const assert = require('node:assert');\n\nfunction test() {\n  assert.deepEqual(twice(1), 2);\n"
        "  assert.deepEqual(twice(-3), -6);\n}\n\ntest();",
        ("\nfunction ", "\n/*", "\n//", "\nconsole.log"),
    ),
    "ts": (
        "function twice(value: number): number {\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\nfunction test() {\n"
        "  assert.deepEqual(twice(1), 2);\n}\n\ntest();",
        ("\nfunction ", "\n/*", "\n//", "\nclass"),
    ),
    "java": (
        f"{JAVA}    public static long twice(long number) {{\n",
        "    }\n    public static void main(String[] args) {\n    assert(twice(1l) == (2l));\n"
        "    assert(twice(-3l) == (-6l));\n    }\n\n}\n",
        ("\n    }\n",),
    ),
    "cpp": (
        f"{CPP}long twice(long number) {{\n",
        "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((1)) == (2));\n"
        "    assert(candidate((-3)) == (-6));\n}\n",
        ("\n}",),
    ),
}
GOOD = {
    "py": "    return 2 * number\n",
    "js": "  return 2 * number;\n}",
    "ts": "  return 2 * value;\n}",
    "java": "        return 2 * number;\n",
    "cpp": "    return 2 * number;\n",
}
WRONG = {language: text.replace("2 *", "3 *") for language, text in GOOD.items()}
INVALID = {language: text.replace("2 *", "2 * * (") for language, text in GOOD.items()}
LANGUAGE_NAMES = tuple(PROMPTS)


def problem(language: str, name: str = "twice") -> Problem:
    prompt, tests, stop_tokens = PROMPTS[language]
    return Problem(name, language, prompt, tests, stop_tokens)


def submission(language: str, completion: str) -> Submission:
    prompt, tests, _ = PROMPTS[language]
    return Submission(language, prompt + completion, tests)


def hasty(name: str, seconds: float = 2):
    """The language with less time for a run, so that what never ends costs a test little."""
    return replace(find_language(name), run_seconds=seconds)


def needs(*languages: str):
    """Skips a test where a tool of these languages, or the sandbox, is not installed; the reason names it."""
    commands = ["bwrap", *(tool.command for name in languages for tool in LANGUAGES[name].tools)]
    missing = [command for command in commands if shutil.which(command) is None and not command.startswith("/")]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
