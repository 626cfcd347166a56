"""C++, compiled by g++; its standard headers are compiled once."""

from moe_codegen.evaluation.languages.language import Compilation, Language, Tool, before_last


def _with_marker(tests: str, first: str, second: str) -> str:
    # The header defines `assert` again each time it is included, whatever the program made of it.
    guarded = before_last(tests, 1, f'    assert(__builtin_printf("%s%s", "{first}", "{second}") > 0);')
    return f"#undef NDEBUG\n#include <assert.h>\n{guarded}"


CPP = Language(
    name="cpp",
    title="C++",
    source="program.cpp",
    tools=(Tool("g++", "g++"),),
    run=("./program",),
    run_seconds=15,
    with_marker=_with_marker,
    compilation=Compilation(
        command=("g++", "program.cpp", "-o", "program", "-std=c++17"),
        artifact="program",
        precompiled="#include<assert.h>\n#include<bits/stdc++.h>\n",
    ),
    assertion_marks=("Assertion `",),
    memory_marks=("std::bad_alloc",),
)
