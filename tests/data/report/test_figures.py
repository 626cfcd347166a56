import matplotlib.pyplot as plt
import pytest

from moe_codegen.data.report.figures import draw

SAMPLE = {"mean": 100.0, "population_mean": 90.0, "half_width": 10.0}
STAGES = [
    {"verb": "dedup", "tally": {"kept": {"c": [9, 9], "python": [1, 1]}, "near_duplicate": {"python": [8, 8]}}},
    {"verb": "dedup", "cluster_sizes": {"1": 900, "2": 3}},
    {"verb": "sample", "samples": {"c": SAMPLE, "python": SAMPLE}},
]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The axes of the picture of each of the stages."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    names = draw(STAGES, tmp_path)
    assert [name for some in names for name in some] == sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.undo()
    yield [figure.axes for figure in figures]
    plt.close("all")


def test_the_longest_bar_ends_within_the_frame(drawn):
    for axis in drawn[0]:
        longest = max(bar.get_x() + bar.get_width() for bar in axis.patches)
        assert 0 == axis.get_xlim()[0] < longest < axis.get_xlim()[1]


def test_languages_go_down_in_the_order_of_the_tables_and_none_lies_on_the_frame(drawn):
    for axis in (*drawn[0], *drawn[2]):
        bottom, top = axis.get_ylim()
        assert top < 0 < 1 < bottom
        assert [label.get_text() for label in axis.get_yticklabels()] in (["c", "python"], [])


def test_sizes_of_clusters_are_whole_numbers(drawn):
    (axis,) = drawn[1]
    axis.figure.canvas.draw()
    low, high = axis.get_xlim()
    labels = [each.get_text() for each in axis.get_xticklabels(which="both") if low < each.get_position()[0] < high]
    assert [label for label in labels if label] == ["1", "2"]
