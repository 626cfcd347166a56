"""The languages, and what of their tools this machine has."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from moe_codegen.errors import ConfigError, ToolchainError
from moe_codegen.evaluation.languages.cpp import CPP
from moe_codegen.evaluation.languages.java import JAVA
from moe_codegen.evaluation.languages.javascript import JAVASCRIPT
from moe_codegen.evaluation.languages.language import Language, Tool
from moe_codegen.evaluation.languages.python import PYTHON
from moe_codegen.evaluation.languages.typescript import TYPESCRIPT
from moe_codegen.languages import canonical_language

LANGUAGES = {language.name: language for language in (PYTHON, JAVA, JAVASCRIPT, CPP, TYPESCRIPT)}


def find_language(name: str) -> Language:
    """The language of that name: MultiPL-E's, such as py, or the data's, such as python.

    Raises `ConfigError` for another.
    """
    for language in LANGUAGES.values():
        if canonical_language(language.name) == canonical_language(name):
            return language
    raise ConfigError(f"unknown language {name!r}; the languages are {', '.join(map(canonical_language, LANGUAGES))}")


def check_tools(languages: Iterable[Language], path: str) -> dict[str, str]:
    """Command -> version of everything that `languages` need, looked up in `path` (folders as in PATH).

    Raises `ToolchainError` naming all that is missing, and the Debian packages to install.
    """
    tools = {tool.command: (tool, language) for language in languages for tool in language.tools}
    missing = [(tool, language) for tool, language in tools.values() if _locate(tool, path) is None]
    if missing:
        what = "; ".join(f"{language.title} needs {tool.command}" for tool, language in missing)
        packages = " ".join(sorted({tool.package for tool, _ in missing}))
        raise ToolchainError(f"{what} (looked in {path}): apt-get install {packages}, or leave those languages out")
    return {command: _version(tool, path) for command, (tool, _) in tools.items() if tool.version is not None}


def _locate(tool: Tool, path: str) -> str | None:
    if tool.version is None:
        return tool.command if Path(tool.command).exists() else None
    return shutil.which(tool.command, path=path)


def _version(tool: Tool, path: str) -> str:
    """The first line that the tool prints of itself."""
    command = [str(_locate(tool, path)), *(tool.version or ())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise ToolchainError(f"{' '.join(command)} failed ({done.stdout.strip()}): apt-get install {tool.package}")
    return re.sub(r"\s+", " ", done.stdout.strip().splitlines()[0])
