"""Java: compiled by a javac that stays in memory, run in a new virtual machine each time."""

from moe_codegen.evaluation.languages.language import Compilation, Language, Tool, before_last

JAVATUPLES = "/usr/share/java/javatuples.jar"  # which every prompt of MultiPL-E imports


def _with_marker(tests: str, first: str, second: str) -> str:
    stream = "new java.io.PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out))"
    # Not System.out, which the program may have replaced.
    # A sum of the two would be one constant in the class file.
    return before_last(tests, 2, f'    assert !{stream}.append("{first}".concat("{second}")).checkError();')


JAVA = Language(
    name="java",
    title="Java",
    source="Problem.java",
    tools=(
        Tool("javac", "default-jdk-headless", ("-version",)),
        Tool("java", "default-jre-headless", ("-version",)),
        Tool(JAVATUPLES, "libjavatuples-java", None),
    ),
    # One processor's worth of helper threads: a program that lives for a moment gains nothing by more.
    run=(
        *("java", "-ea", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx512m"),
        *("-cp", f"program.jar:{JAVATUPLES}", "Problem"),
    ),
    run_seconds=15,
    with_marker=_with_marker,
    compilation=Compilation(
        command=("javac", "-encoding", "UTF8", "-proc:none", "-cp", JAVATUPLES, "Problem.java"),
        artifact="program.jar",
        server="javac",
    ),
    assertion_marks=("java.lang.AssertionError",),
    memory_marks=("java.lang.OutOfMemoryError", "insufficient memory for the Java Runtime"),
)
