"""What the pictures of a run show."""

import pytest

from moe_codegen.training import figures

LOAD = {"languages": ["java", "rust"], "layers": [0, 1], "first": [[[4, 4], [4, 4]], [[2, 6], [6, 2]]]}
LINES = [
    {"step": step, "tokens": 64 * step, "loss": 5.0 - step, "load": {**LOAD, "chosen": LOAD["first"]}}
    for step in (1, 2, 4)
] + [{"step": step, "eval_loss_java": 1.0, "eval_loss_all": 2.0} for step in (3, 4)]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The figures, by name."""
    found = {}
    monkeypatch.setattr(figures, "_save", lambda figure, path: found.update({path.name: figure}))
    figures.draw(LINES, tmp_path / "figures", ["java", "rust"])
    return found


def test_every_validation_is_drawn_whether_or_not_a_line_of_the_training_loss_is_of_its_step(drawn):
    shown = {line.get_label(): list(line.get_xdata()) for line in drawn["losses.png"].axes[0].get_lines()}
    assert shown == {"training": [64, 128, 256], "all": [192, 256], "java": [192, 256]}


def test_the_load_says_which_line_is_which_expert(drawn):
    (legend,) = drawn["load.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["java", "rust"]


def test_no_words_are_cut_off(drawn):
    for figure in drawn.values():
        figure.draw_without_rendering()
        page = figure.bbox
        for axis in figure.axes:
            assert page.padded(1).count_contains(axis.get_tightbbox().corners()) == 4
