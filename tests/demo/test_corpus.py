"""The demo's corpus: real programs, bounded, the same ones every time."""

from moe_codegen.demo import gather_sources
from moe_codegen.demo.corpus import FILE_BYTES, source_roots

PROGRAM = "def function(argument):\n    return argument + 1\n\n\n" * 20


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_files_are_grouped_by_language_and_named_from_their_root(tmp_path):
    write(tmp_path, {"a/x.py": PROGRAM, "b/y.hpp": PROGRAM, "z.mjs": PROGRAM, "notes.txt": PROGRAM})
    found = {(document.path, document.language) for document in gather_sources([tmp_path])}
    assert found == {("a/x.py", "python"), ("b/y.hpp", "cpp"), ("z.mjs", "javascript")}


def test_what_is_no_program_to_learn_from_is_left_out(tmp_path):
    write(
        tmp_path,
        {
            "kept.py": PROGRAM,
            "tests/x.py": PROGRAM,
            "encodings/x.py": PROGRAM,
            "small.py": "x = 1\n",
            "large.py": PROGRAM * 60,
            "minified.js": "x" * 2000,
            "latin.py": b"# \xe9\n" + PROGRAM.encode(),
            "long_lines.py": ("x = " + "1 + " * 30 + "1\n") * 10,
        },
    )
    assert [document.path for document in gather_sources([tmp_path])] == ["kept.py"]


def test_the_choice_depends_on_the_seed_and_not_on_where_files_lie(tmp_path):
    files = {f"{i}.py": PROGRAM + f"# {i}\n" for i in range(30)}
    write(tmp_path / "one", files)
    write(tmp_path / "two", dict(reversed(files.items())))
    budgets = {"python": 8_000}
    first = gather_sources([tmp_path / "one"], budgets, seed=1)
    assert first == gather_sources([tmp_path / "two"], budgets, seed=1)
    assert first != gather_sources([tmp_path / "one"], budgets, seed=2)
    assert 8_000 <= sum(len(document.text) for document in first) < 8_000 + len(PROGRAM) + 10


def test_this_machine_has_enough():
    documents = gather_sources(budgets={"python": 50_000, "cpp": 20_000})
    assert {document.language for document in documents} == {"python", "cpp"}
    assert all(len(document.text.encode()) in FILE_BYTES for document in documents)
    assert len({root.resolve() for root in source_roots()}) == len(source_roots())
