"""`moe-codegen generate`: only the text on standard output, colours only on a terminal."""

import io
import json
import os
import re

import pytest
from rich.console import Console

from moe_codegen.cli import console
from moe_codegen.cli.routing import PALETTE, harmless, paint, style_of
from moe_codegen.errors import ConfigError
from moe_codegen.generation import complete, load_model
from tests.cli.checkpoints import run, run_process

PROMPT = "def add(first"


def expected(path, prompt=PROMPT, **options):
    return complete(*load_model(path, device="cpu"), prompt, **{"max_new_tokens": 8, **options}).text


def generate(path, *arguments, input=None):
    return run("generate", path, *arguments, "--max-new-tokens", 8, "--device", "cpu", input=input)


@pytest.mark.parametrize("name", ["dense", "moe", "named"])
def test_only_the_text_goes_to_standard_output(name, request):
    path = request.getfixturevalue(name)
    result = generate(path, PROMPT)
    text = expected(path)
    assert result.stdout == text + ("" if text.endswith("\n") else "\n")
    assert "tokens/s" in result.stderr


def test_dense_and_mixture_say_the_same(dense, moe):
    assert generate(dense, PROMPT).stdout == generate(moe, PROMPT).stdout


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_the_prompt_comes_from_standard_input_as_it_is(arguments, dense):
    assert generate(dense, *arguments, input="def\n").stdout.rstrip("\n") == expected(dense, "def\n").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "input", "before", "after"),
    [
        (("--prefix", "def ", "--suffix", "return"), None, "def ", "return"),
        (("--prefix", "def "), None, "def ", ""),
        (("--suffix", "return"), None, "", "return"),
        (("def ", "--suffix", "return"), None, "def ", "return"),
        (("-", "--suffix", "return"), "def ", "def ", "return"),
    ],
)
def test_a_gap_is_what_prefix_and_suffix_leave(arguments, input, before, after, dense):
    record = json.loads(generate(dense, *arguments, "--json", input=input).stdout)
    _, tokenizer = load_model(dense)
    text = tokenizer.decode(record["prompt_ids"])
    assert text == f"<fim-prefix>{before}<fim-suffix>{after}<fim-middle>"


def test_json_has_everything_a_program_may_want(named):
    record = json.loads(generate(named, PROMPT, "--json").stdout)
    assert record["text"] == "".join(record["tokens"]) == expected(named)
    count = len(record["token_ids"])
    assert len(record["tokens"]) == count > 1
    assert record["finish_reason"] == ("length" if count == 8 else "end")
    assert record["seconds_to_first_token"] > 0
    assert record["tokens_per_second"] > 0
    routing = record["routing"]
    assert routing["sparse_layers"] == [0, 2]
    assert routing["expert_names"] == ["python", "java"]
    assert [[len(layer) for layer in token] for token in routing["experts"]] == [[2, 2]] * count


def test_a_dense_models_json_has_no_routing(dense):
    assert json.loads(generate(dense, PROMPT, "--json").stdout)["routing"] is None


def test_the_legend_names_experts_and_their_shares(named):
    result = generate(named, PROMPT, "--show-routing", "--routing-layer", 0)
    assert "first expert in layer 0" in result.stderr
    shares = [int(share) for share in re.findall(r"expert \d (?:python|java)\s+(\d+)%", result.stderr)]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert "\x1b" not in result.stdout + result.stderr


def test_a_prompt_in_another_encoding_is_continued_all_the_same(dense):
    marked = expected(dense, "caf\ufffd").rstrip("\n")
    assert generate(dense, input=b"caf\xe9").stdout.rstrip("\n") == marked
    assert generate(dense, os.fsdecode(b"caf\xe9")).stdout.rstrip("\n") == marked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPT, "--prefix", "x"), "give one of them"),
        ((PROMPT, "--show-routing"), "dense model routes nothing"),
        ((PROMPT, "--temperature", "-1"), "temperature=-1.0 must be 0"),
        ((PROMPT, "--stop", ""), "empty stop string"),
    ],
)
def test_what_cannot_be_is_an_error(arguments, message, dense):
    with pytest.raises(ConfigError, match=message):
        raise generate(dense, *arguments).exception


def test_a_layer_that_is_not_sparse_cannot_be_shown(named):
    with pytest.raises(ConfigError, match="the sparse layers are 0, 2"):
        raise generate(named, PROMPT, "--routing-layer", 1).exception


def test_on_a_terminal_each_token_has_its_experts_colour(named, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="256", width=80)
    monkeypatch.setattr(console, "output", terminal)
    record = json.loads(
        run("generate", named, PROMPT, "--max-new-tokens", 8, "--json").stdout or terminal.file.getvalue()
    )
    terminal.file.truncate(0)
    terminal.file.seek(0)
    generate(named, PROMPT, "--show-routing")
    written = terminal.file.getvalue()
    assert written.startswith(f"\x1b[2m{PROMPT}")  # what is continued, dimmed
    painted = "".join(
        paint(terminal, text, style_of(experts[1][0]))
        for text, experts in zip(record["tokens"], record["routing"]["experts"], strict=True)
    )
    assert painted in written


def test_a_colour_does_not_run_over_the_line_and_blanks_are_kept():
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="256")
    painted = paint(terminal, "a\n\t b", style_of(0))
    colour = f"\x1b[38;5;16;48;5;{PALETTE[0]}m"
    assert painted == f"{colour}a\x1b[0m\n{colour}\t b\x1b[0m"


def test_what_a_terminal_would_obey_is_not_written_to_it():
    assert harmless("\x1b[2Jx\ty\n\r\x9b") == "\ufffd[2Jx\ty\n\ufffd\ufffd"


def test_a_process_streams_and_can_be_piped(moe):
    process = run_process("generate", moe, "--max-new-tokens", "8", input=PROMPT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.rstrip("\n") == expected(moe).rstrip("\n")
    assert "\x1b" not in process.stdout + process.stderr
    assert process.stderr.count("\n") == 1  # the speed, and no warning of anybody's
