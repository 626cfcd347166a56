"""What `inspect` says of a source is what a count by hand finds, over all of its units."""

from moe_codegen.data.filtering.inspect import inspect
from moe_codegen.data.reading.sources import open_source
from tests.data.inputs import row, tree, write


def test_every_row_is_counted_by_language_and_licence_and_nothing_else_is_written(tmp_path):
    rows = [row(seed, language="c" if seed < 4 else "python", licenses=["MIT"] * (seed > 2)) for seed in range(29)]
    source = open_source(write(tmp_path / "in", [*rows, row(29, content=None, language="c")]), unit_bytes=1)
    assert len(source.units) > 1
    seen = inspect(source, tmp_path / "out")
    nbytes = {name: sum(len(one["content"]) for one in rows if one["language"] == name) for name in ("c", "python")}
    assert seen["tally"] == {
        "kept": {"c": [4, nbytes["c"]], "python": [25, nbytes["python"]]},
        "null_content": {"c": [1, 0]},
    }
    assert seen["licenses"] == {"MIT": 26, "unknown": 3}
    assert seen["repositories"] == 7
    assert {sum(counts) for counts in seen["histograms"].values()} == {29}
    assert set(rows[0]) <= set(seen["columns"])
    assert list(tree(tmp_path / "out")) == ["manifest.json"]
