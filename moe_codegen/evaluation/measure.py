"""`measure`: what a model is worth on held-out files, short of running what it writes.

    OUT/
      loss.json            nats, tokens and bytes of every document
      completion.json      what the model wrote at every place, and how near it came
      routing.json         of a mixture: how often each expert took each language and kind of token

Each is written whole, beside a run's own files if OUT is one, and says which model, settings and documents it is of.
Given again, the command makes only what is missing.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_codegen.errors import ConfigError, OutputError, ResultError
from moe_codegen.evaluation.completion import complete_places, tasks_for
from moe_codegen.evaluation.documents import digest_of, read_documents, shortened
from moe_codegen.evaluation.expert_use import expert_use, expert_use_record
from moe_codegen.evaluation.files import write_whole
from moe_codegen.evaluation.model_record import model_record, versions
from moe_codegen.evaluation.places import choose_places
from moe_codegen.metrics import Document, document_losses, encode_documents, start_token
from moe_codegen.metrics.windows import count_windows, window_length
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.settings import as_record, setting

MEASURES = ("loss", "completion", "routing")


@dataclass(frozen=True)
class MeasureSettings:
    """Which files, and how much of each."""

    languages: tuple[str, ...] = setting(("python", "java", "javascript", "cpp"), "Languages to measure.")
    documents: int = setting(200, "Files of each language, at most.")
    per_repository: int = setting(10, "Files of one repository, at most.")
    characters: int = setting(8000, "Of each file, its first lines of so many characters.")
    window: int | None = setting(None, "Tokens the model sees at once.  [default: its positions, up to 2048]")
    batch_tokens: int = setting(4096, "Tokens that go through the model together.")
    places: int = setting(1, "Lines of each file to complete.")
    context: int = setting(512, "Tokens of prompt for a line, at most.")
    max_new_tokens: int = setting(48, "Tokens at which a line is given up.")
    batch_size: int = setting(16, "Lines completed together.")
    seed: int = setting(0, "Of the choice of files and lines.")

    def __post_init__(self) -> None:
        least = {"documents": 1, "per_repository": 1, "characters": 1, "batch_tokens": 1, "context": 8}
        for name, bound in {**least, "max_new_tokens": 1, "batch_size": 1, "places": 0}.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name}={getattr(self, name)} should be at least {bound}")
        if not self.languages:
            raise ConfigError("no language to measure; name at least one")


def measure(
    path: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str | Path,
    out: str | Path,
    settings: MeasureSettings | None = None,
    *,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Measure a model on held-out files and write each measure to `out`; returns what the files hold.

    Args:
        path: what `load_model` made `model` and `tokenizer` from.
        data: as `read_documents` reads it.
        out: a folder: new, of an evaluation run of the same model, or of a measurement that was broken off.
        progress: told each measure's number of windows or lines.

    Raises:
        ConfigError: settings that do not fit the model or the data.
        OutputError: `out` holds measures of another model, of other settings or of other files.
    """
    settings, out = settings or MeasureSettings(), Path(out)
    documents = read_documents(
        data,
        settings.languages,
        documents=settings.documents,
        per_repository=settings.per_repository,
        seed=settings.seed,
    )
    subject = {
        "model": model_record(path, model),
        "settings": as_record(settings),
        "documents": _account(documents),
    }
    wanted = [name for name in MEASURES if name != "routing" or subject["model"]["kind"] == "mixture"]
    done = {name: found for name in wanted if (found := read_measure(out, name)) is not None}
    for name, record in done.items():
        for part, value in subject.items():
            if record[part] != value:
                raise OutputError(f"{out / name}.json is of other {part}; give another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    make = {"loss": _loss, "completion": _completion, "routing": _routing}
    for name in wanted:
        if name not in done:
            start = time.perf_counter()
            made = make[name](model, tokenizer, documents, settings, progress)
            seconds = {"seconds": time.perf_counter() - start, "versions": versions()}
            done[name] = {"measure": name, **subject, **seconds, **made}
            write_whole(out / f"{name}.json", (json.dumps(done[name], ensure_ascii=False) + "\n").encode())
    return done


def read_measure(out: Path, name: str) -> dict[str, Any] | None:
    """One of the `MEASURES` of a folder; None where it has not been made. Raises `ResultError` where it is damaged."""
    path = out / f"{name}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["measure"] != name:
            raise KeyError(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is damaged ({error!r}); remove it to have it made again") from error
    return record


def _account(documents: Sequence[Document]) -> dict[str, Any]:
    """What the documents are, as far as a reader wants to know."""
    files = Counter(document.language for document in documents)
    repositories = Counter(
        language for language, _ in {(document.language, document.repository) for document in documents}
    )
    return {
        "sha256": digest_of(documents),
        "files": dict(files),
        "repositories": {name: repositories[name] for name in files},
    }


def _loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    settings: MeasureSettings,
    progress: Progress,
) -> dict[str, Any]:
    short = [shortened(document, settings.characters) for document in documents]
    encoded = encode_documents(tokenizer, short)
    start = time.perf_counter()
    losses = document_losses(
        model,
        encoded,
        start_token(tokenizer),
        window=settings.window,
        batch_tokens=settings.batch_tokens,
        on_windows=progress("loss", count_windows(encoded, window_length(model, settings.window)), 0),
    )
    seconds = time.perf_counter() - start
    arrays = {name: getattr(losses, name).tolist() for name in ("nats", "tokens", "bytes")}
    names = {name: list(getattr(losses, name)) for name in ("names", "repositories", "languages")}
    return {"losses": names | arrays, "tokens_per_second": int(losses.tokens.sum()) / seconds}


def _completion(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    settings: MeasureSettings,
    progress: Progress,
) -> dict[str, Any]:
    places = choose_places(documents, settings.places, settings.characters, settings.seed)
    tasks = tasks_for(tokenizer) if places else []
    advance = progress("completion", len(places) * len(tasks), 0)
    completions = [
        asdict(completion)
        for task in tasks
        for completion in complete_places(
            model,
            tokenizer,
            places,
            task,
            context=settings.context,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            on_places=advance,
        )
    ]
    return {"tasks": tasks, "completions": completions}


def _routing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    settings: MeasureSettings,
    progress: Progress,
) -> dict[str, Any]:
    counts = expert_use(
        model,
        tokenizer,
        [shortened(document, settings.characters) for document in documents],
        window=settings.window,
        batch_tokens=settings.batch_tokens,
        progress=progress,
    )
    return expert_use_record(counts)
