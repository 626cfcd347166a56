"""`moe-codegen demo`: the whole road on this machine, with the commands one would type."""

import hashlib
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from moe_codegen.cli import console
from moe_codegen.demo import (
    Document,
    TrainingProgress,
    Workspace,
    compare,
    gather_sources,
    small_santacoder,
    tokenise,
    train,
    train_tokenizer,
)
from moe_codegen.errors import ConfigError
from moe_codegen.reporting import format_bytes, format_count, table

STEPS = 450
PROMPT = "class Node:\n    def __init__(self, name, parent=None):\n        self.name = name\n"
BEFORE = "    def __len__(self):\n        return "
AFTER = "\n\n    def __iter__(self):\n        return iter(self._items)\n"
OTHER_PROMPTS = ("def main():\n", "import os\n\n", "    if self._name is not None:\n", "#include <", "  const ")


def demo(
    out: Annotated[Path, typer.Option(help="Folder to fill: a new one, or one that a demo made.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    steps: Annotated[int | None, typer.Option(help=f"Training steps of the dense model.  [default: {STEPS}]")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train by the clock instead of by steps.")] = None,
) -> None:
    """Train a small dense model on source code found here, convert it, check it, complete code with it.

    No network, no GPU, about three minutes on two cores. Run again, it keeps the trained model.
    """
    if steps is not None and minutes is not None:
        raise ConfigError("--steps and --minutes both say how long to train; give one of them")
    if any(length is not None and length <= 0 for length in (steps, minutes)):
        raise ConfigError("training needs at least one step, or some minutes")
    start = time.perf_counter()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    workspace = Workspace(out)
    dense, moe = out / "dense", out / "moe"

    _heading(1, "Source code that is already on this machine")
    documents = gather_sources(seed=seed)
    console.output.print(_languages(documents))

    _heading(2, "A small dense model in SantaCoder's architecture (otherwise, your checkpoint)")
    settings = {"seed": seed, "steps": steps or STEPS, "minutes": minutes, **_environment(documents)}
    if workspace.holds("dense", settings):
        kept = f"{dense} is there already, trained on the same code with the same settings: kept"
        console.output.print(kept, markup=False)
    else:
        _train_dense(documents, workspace.clear("dense"), steps or STEPS, minutes, seed)
        workspace.finish("dense", settings)

    _heading(3, "From dense to a mixture of experts")
    workspace.clear("moe")
    _run("upcycle", dense, moe, "--num-experts", 8, "--top-k", 2, "--seed", seed)

    _heading(4, "Does it compute what the dense model computes?")
    verified = _run("verify", dense, moe) == 0

    _heading(5, "The two side by side")
    _run("inspect", dense, moe)

    _heading(6, "Do they write the same?")
    for path in (dense, moe):
        _run("generate", path, PROMPT, "--max-new-tokens", 32)
    agreement = compare(dense, moe, OTHER_PROMPTS, max_new_tokens=24)
    console.output.print(
        f"{agreement.same_completions} of {agreement.prompts} other prompts are completed with the very same tokens "
        f"({agreement.tokens} in all);\nthe logits differ by {agreement.max_relative_difference:.1e} of the largest "
        "at most"
    )

    _heading(7, "Completing a function, each token in the colour of its first expert")
    _run("generate", moe, PROMPT, "--temperature", 0.5, "--max-new-tokens", 64, "--show-routing")

    _heading(8, "Filling a gap")
    _run("generate", moe, "--prefix", BEFORE, "--suffix", AFTER, "--stop", "\n", "--max-new-tokens", 32)

    everything = escape(str(out))
    console.output.print(f"\n[bold]{time.perf_counter() - start:.0f} s in all; everything is in {everything}[/bold]")
    if not verified or agreement.same_completions < agreement.prompts:
        raise typer.Exit(1)


def _train_dense(documents: Sequence[Document], folder: Path, steps: int, minutes: float | None, seed: int) -> None:
    with console.messages.status("learning a vocabulary"):
        tokenizer = train_tokenizer(document.text for document in documents)
        windows = tokenise(documents, tokenizer, seed)
    model = small_santacoder(tokenizer, seed)
    console.output.print(
        f"{format_count(model.num_parameters())} parameters, vocabulary {len(tokenizer):,}, "
        f"{windows.numel():,} tokens of code"
    )
    start = time.perf_counter()
    with _progress() as on_step:
        loss = train(model, windows, steps=steps, minutes=minutes, seed=seed, on_step=on_step)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    console.output.print(f"trained in {time.perf_counter() - start:.0f} s to a loss of {loss:.2f} nats per token")


@contextmanager
def _progress() -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar on a terminal, ten lines in a log."""
    if not console.messages.is_terminal:
        yield _ten_lines()
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]:.2f}  {task.fields[pace]:,.0f} tokens/s"),
        TextColumn("{task.fields[left]} left", style="progress.remaining"),
    )
    with Progress(*columns, console=console.messages, transient=True) as bar:
        task = bar.add_task("training", total=1.0, loss=0.0, pace=0.0, left="?")

        def show(progress: TrainingProgress) -> None:
            left = f"{progress.seconds_left // 60:.0f}:{progress.seconds_left % 60:02.0f}"
            bar.update(task, completed=progress.share, loss=progress.loss, pace=progress.tokens_per_second, left=left)

        yield show


def _ten_lines() -> Callable[[TrainingProgress], None]:
    shown = 0

    def show(progress: TrainingProgress) -> None:
        nonlocal shown
        if int(progress.share * 10) > shown:
            shown = int(progress.share * 10)
            console.messages.print(
                f"training {progress.share:4.0%}  loss {progress.loss:.2f}  "
                f"{progress.tokens_per_second:,.0f} tokens/s  {progress.seconds_left:.0f} s left"
            )

    return show


def _languages(documents: Sequence[Document]) -> Table:
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.language, []).append(document.text)
    rows = [(language, len(each), format_bytes(sum(map(len, each)))) for language, each in texts.items()]
    return table(("language", "files", "size"), rows)


def _environment(documents: Sequence[Document]) -> dict[str, Any]:
    """What else decides how a dense model comes out."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.path}\0{document.text}\0".encode())
    return {"corpus": digest.hexdigest(), "python": platform.python_version(), "torch": torch.__version__}


def _heading(number: int, text: str) -> None:
    console.output.print(f"\n[bold cyan]{number}[/bold cyan]  [bold]{text}[/bold]")


def _run(verb: str, *arguments: object) -> int:
    """Show what one would type, run exactly that in this process, and return its exit status."""
    from moe_codegen.cli import app  # which imports this module

    typed = [verb, *map(str, arguments)]
    console.output.print("[green]$[/green] moe-codegen ", end="")
    console.output.print(" ".join(map(quoted, typed)), markup=False, soft_wrap=True)
    status = typer.main.get_command(app).main(typed, prog_name="moe-codegen", standalone_mode=False)
    return status or 0


def quoted(argument: str) -> str:
    """As bash reads it, newlines spelt out."""
    if "\n" not in argument:
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"
