"""What quantising the experts costs: loss on real code that was held out, of a small mixture that has been trained."""

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, Row, case
from moe_codegen import ExpertQuantisationConfig, MoEForCausalLM, upcycle
from moe_codegen.checkpoint import load_tokenizer
from moe_codegen.demo import Document as TrainingDocument
from moe_codegen.demo import small_santacoder, tokenise, train, train_tokenizer
from moe_codegen.metrics import Document, document_losses, encode_documents, loss_differences, losses_by_language
from moe_codegen.metrics import start_token as start_of

HELD_OUT = 8  # one repository in so many
FORMATS = ((8, None), (8, 32), (4, 32), (4, 64))
LARGEST_FILE = 20_000  # bytes


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, or how long to train one."""
    parser.add_argument("--model", type=Path, help="a trained mixture with its tokenizer [one is trained here]")
    parser.add_argument("--steps", type=int, default=300, help="of the dense model; half as many of its mixture")
    parser.add_argument("--megabytes", type=float, default=3.0, help="of code to train on")
    parser.add_argument("--documents", type=int, default=200, help="held-out files the loss is measured on")


@case(
    "quantised-loss",
    "loss on held-out code of a trained mixture, its experts in full precision and fewer bits",
    add_options,
)
def run(options: argparse.Namespace) -> Result:
    """The same documents through each format; differences are paired, with intervals over repositories."""
    corpus = find_corpus()
    if corpus is None:
        return Result([], notes=[SKIPPED])
    with ExitStack() as stack:
        path = options.model
        if path is None:
            path = Path(stack.enter_context(TemporaryDirectory(prefix="moe-codegen-"))) / "moe"
            _train_mixture(corpus, path, options)
        return _measure(corpus, path, options.documents)


def _measure(corpus: Path, path: Path, count: int) -> Result:
    model = MoEForCausalLM.from_pretrained(path, dtype="auto")
    tokenizer = load_tokenizer(path, model.config)
    documents = encode_documents(tokenizer, _take(_documents(corpus, held_out=True), count))
    start_id = start_of(tokenizer)
    full = document_losses(model, documents, start_id)
    loss = losses_by_language(full)["all"].value
    rows: list[Row] = [{"experts": str(model.dtype).removeprefix("torch."), "loss (nats a token)": loss}]
    for bits, group in FORMATS:
        if group and (model.config.hidden_size % group or model.config.moe_intermediate_size % group):
            continue
        asked = ExpertQuantisationConfig(bits=bits, group_size=group)
        quantised = MoEForCausalLM.from_pretrained(path, dtype="auto", expert_quantization=asked)
        losses = document_losses(quantised, documents, start_id)
        change = loss_differences(losses, full)["all"]
        rows.append(
            {
                "experts": str(asked),
                "loss (nats a token)": losses_by_language(losses)["all"].value,
                "change %": 100 * change.value / loss,
                "from %": None if change.low is None else 100 * change.low / loss,
                "to %": None if change.high is None else 100 * change.high / loss,
            }
        )
    note = f"{len(documents)} files, {sum(full.tokens):,} tokens; {model.num_parameters():,} parameters"
    return Result(rows, notes=[note])


def _train_mixture(corpus: Path, path: Path, options: argparse.Namespace) -> None:
    """The demo's dense model, its mixture of 8, and training for both; what is held out is not among it."""
    texts, size = [], 0
    for document in _documents(corpus, held_out=False):
        texts.append(TrainingDocument(document.name, document.language, document.text))
        size += len(document.text)
        if size > 1e6 * options.megabytes:
            break
    tokenizer = train_tokenizer(document.text for document in texts)
    windows = tokenise(texts, tokenizer)
    dense = small_santacoder(tokenizer)
    print(f"dense: trained to {train(dense, windows, steps=options.steps):.3f} nats a token")
    dense.save_pretrained(path.with_name("dense"))
    tokenizer.save_pretrained(path.with_name("dense"))
    upcycle(path.with_name("dense"), path.with_name("start"), num_experts=8, top_k=2, noise_std=0.1)
    mixture = MoEForCausalLM.from_pretrained(path.with_name("start"))
    loss = train(mixture, windows, steps=options.steps // 2, seed=1)
    print(f"mixture: trained to {loss:.3f} nats a token, router losses included")
    mixture.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _documents(corpus: Path, held_out: bool) -> Iterator[Document]:
    """Files of each language in turn, of the repositories that are held out or of the others, in a fixed order."""
    readers = []
    for file in sorted(corpus.glob("*.parquet")):
        rows = pq.read_table(file, columns=["repo", "path", "content"]).to_pylist()
        rows = [row for row in rows if _is_held_out(row["repo"]) == held_out and row["content"].strip()]
        rows = [row for row in rows if len(row["content"]) <= LARGEST_FILE]
        readers.append((file.stem, iter(sorted(rows, key=lambda row: _digest(row["repo"] + row["path"])))))
    while readers:
        for language, rows in list(readers):
            row = next(rows, None)
            if row is None:
                readers.remove((language, rows))
            else:
                yield Document(f"{row['repo']}/{row['path']}", row["repo"], language, row["content"])


def _take(documents: Iterator[Document], count: int) -> list[Document]:
    return [document for document, _ in zip(documents, range(count), strict=False)]


def _is_held_out(repository: str) -> bool:
    return int(_digest(repository), 16) % HELD_OUT == 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
