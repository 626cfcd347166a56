"""What one sees: a line or a bar with numbers, and a warning where routing fails."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from moe_codegen.metrics import LoadCounts
from moe_codegen.training import train
from moe_codegen.training.meter import concentration
from moe_codegen.training.progress import RoutingWatch, TrainingBar
from tests.training.runs import LENGTH, from_scratch


def counts(shares, top_k=2):
    chosen = np.array([[shares]]) * top_k
    first = np.zeros_like(chosen)
    first[..., 0] = chosen.sum() / top_k
    return LoadCounts(("all",), (0,), chosen, first)


@pytest.mark.parametrize(
    ("shares", "expected"), [([25, 25, 25, 25], 0.0), ([50, 50, 0, 0], 1.0), ([48, 48, 2, 2], 0.816)]
)
def test_concentration_is_0_in_balance_and_1_where_every_token_goes_to_the_same(shares, expected):
    assert concentration(counts(shares)) == pytest.approx([expected], abs=0.01)


def test_a_mixture_that_uses_all_its_experts_for_each_token_cannot_collapse():
    assert concentration(counts([50, 50])) == [0.0]


def say(watch, step, **logs):
    state = SimpleNamespace(is_world_process_zero=True, global_step=step)
    watch.on_log(None, state, None, logs={"load_concentration": 0.1, "dead_experts": 0} | logs)


def test_collapse_and_dead_experts_are_said_once_when_they_stay():
    said = []
    watch = RoutingWatch(said.append)
    say(watch, 1, load_concentration=0.8)
    say(watch, 2, dead_experts=2)
    say(watch, 3)
    assert said == []
    say(watch, 4, dead_experts=2)
    say(watch, 5, dead_experts=1)
    say(watch, 6, load_concentration=0.8)
    say(watch, 7, load_concentration=0.9, dead_experts=1)
    say(watch, 8, load_concentration=0.9, dead_experts=1)
    assert len(said) == 2
    assert "next to no tokens at step 5, over all layers: 1;" in said[0]
    assert "routing collapses at step 7" in said[1]
    assert "Raise router_aux_loss_coef" in said[1]


def test_without_a_terminal_a_run_says_ten_lines_and_its_validations(corpus, tmp_path):
    text = io.StringIO()
    bar = TrainingBar(Console(file=text, width=200))
    train(from_scratch(corpus, tokens=20 * 8 * LENGTH, evaluate_every=10), tmp_path / "out", callbacks=[bar])
    lines = text.getvalue().splitlines()
    assert sum("tokens/s" in line for line in lines) == 10
    assert [line.split("validation")[0].strip() for line in lines if "validation" in line] == ["step 10", "step 20"]


def test_on_a_terminal_there_is_one_bar_with_loss_pace_and_the_time_left(corpus, tmp_path):
    text = io.StringIO()
    bar = TrainingBar(Console(file=text, width=140, force_terminal=True))
    train(from_scratch(corpus, tokens=5 * 8 * LENGTH), tmp_path / "out", callbacks=[bar])
    shown = text.getvalue()
    assert "5/5" in shown
    assert "tokens/s" in shown
    assert "0:00:0" in shown
