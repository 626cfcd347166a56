"""`moe-codegen generate`: complete code, or fill a gap in it."""

import io
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import torch
import typer
from rich.style import Style
from transformers import PreTrainedModel
from transformers.utils import logging

from moe_codegen.cli import console
from moe_codegen.cli.routing import harmless, legend, paint, style_of
from moe_codegen.errors import ConfigError
from moe_codegen.generation import Completion, Token, complete, load_model
from moe_codegen.modeling import MoEConfig

CONTEXT = Style(dim=True)


class Dtype(StrEnum):
    """What weights can be loaded as."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def generate(
    path: Annotated[str, typer.Argument(help="Dense or mixture checkpoint: a folder or hub id.")],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; '-', or none at all, reads standard input.")
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Fill in the middle: the text before the gap.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Fill in the middle: the text after the gap.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are sampled.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    language: Annotated[str | None, typer.Option(help="Of the text, for a mixture that routes by language.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to stop before; may be given again.")] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; otherwise the checkpoint's.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; otherwise the accelerator.")] = None,
    show_routing: Annotated[
        bool, typer.Option("--show-routing", help="Colour each token by the first expert that took it.")
    ] = False,
    routing_layer: Annotated[
        int | None, typer.Option(help="The sparse layer --show-routing shows; otherwise the middle one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON at the end instead of a stream.")] = False,
) -> None:
    """Complete code and stream it; with --prefix and --suffix fill the gap between them.

    Only the generated text goes to standard output, so that it can be piped; a terminal also shows what it continues.
    """
    before, after = _texts(*map(_as_utf8, (prompt, prefix, suffix)))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with console.messages.status(f"loading {path}"):
        model, tokenizer = load_model(path, getattr(torch, dtype) if dtype else None, device)
    layer = _layer_shown(model, routing_layer) if show_routing or routing_layer is not None else None
    position = None if layer is None else model.config.sparse_layers.index(layer)
    if console.output.is_terminal and not as_json:
        _write(paint(console.output, before, CONTEXT))
    completion = complete(
        model,
        tokenizer,
        before,
        suffix=after,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        language=language,
        on_token=_ignore if as_json else _writer(position),
    )
    if as_json:
        console.print_json(as_record(completion, model))
        return
    if console.output.is_terminal:
        _write(paint(console.output, after or "", CONTEXT) + "\n")
    elif not completion.text.endswith("\n"):
        _write("\n")
    if layer is not None and position is not None:
        config = model.config
        table = legend(completion.tokens, layer, position, config.expert_names, config.expert_granularity)
        console.messages.print("", table)
    console.messages.print(_speed(completion), style="dim")


def as_record(completion: Completion, model: PreTrainedModel) -> dict[str, Any]:
    """The completion as one JSON object; `routing` lists experts by token, sparse layer and rank."""
    config = model.config
    routing = None
    if isinstance(config, MoEConfig):
        routing = {
            "sparse_layers": config.sparse_layers,
            "expert_names": config.expert_names,
            "experts": [token.experts for token in completion.tokens],
        }
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "tokens": [token.text for token in completion.tokens],
        "prompt_ids": completion.prompt_ids,
        "finish_reason": completion.finish_reason,
        "seconds_to_first_token": completion.seconds_to_first_token,
        "tokens_per_second": completion.tokens_per_second,
        "routing": routing,
    }


def _texts(prompt: str | None, prefix: str | None, suffix: str | None) -> tuple[str, str | None]:
    """What comes before the gap, and what after it; None for no gap."""
    if prompt is not None and prefix is not None:
        raise ConfigError("a prompt and --prefix both say what comes first; give one of them")
    if prefix is not None:
        return prefix, suffix or ""
    if prompt not in (None, "-"):
        return prompt, suffix
    if prompt is None and suffix is not None:
        return "", suffix
    if sys.stdin.isatty():
        console.messages.print("reading the prompt from the terminal; Ctrl-D on an empty line ends it", style="dim")
    return io.TextIOWrapper(sys.stdin.buffer, "utf-8", "replace").read(), suffix


def _as_utf8(text: str | None) -> str | None:
    """An argument with a mark for each byte of it that is no UTF-8, which Python hands on as half a character."""
    return text and text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _layer_shown(model: PreTrainedModel, asked: int | None) -> int:
    if not isinstance(model.config, MoEConfig):
        raise ConfigError("a dense model routes nothing; leave out --show-routing, or give a mixture")
    sparse = model.config.sparse_layers
    if asked is None:
        return sparse[len(sparse) // 2]
    if asked not in sparse:
        raise ConfigError(f"layer {asked} is not sparse; the sparse layers are {', '.join(map(str, sparse))}")
    return asked


def _writer(position: int | None) -> Callable[[Token], None]:
    """Writes tokens to standard output as they come, coloured by the experts of one sparse layer if asked to."""

    def write(token: Token) -> None:
        if not console.output.is_terminal:
            _write(token.text)
        elif position is None or token.experts is None:
            _write(harmless(token.text))
        else:
            _write(paint(console.output, token.text, style_of(token.experts[position][0])))

    return write


def _ignore(token: Token) -> None:
    """For an answer that is only given as a whole."""


def _write(text: str) -> None:
    console.output.file.write(text)
    console.output.file.flush()


def _speed(completion: Completion) -> str:
    pace = f", then {completion.tokens_per_second:.3g} tokens/s" if completion.tokens_per_second else ""
    count = len(completion.tokens)
    return (
        f"{count} token{'' if count == 1 else 's'} after {len(completion.prompt_ids)} of prompt; "
        f"the first after {completion.seconds_to_first_token:.2g} s{pace}"
    )
