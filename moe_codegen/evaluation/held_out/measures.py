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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_codegen.errors import OutputError
from moe_codegen.evaluation.execution.bench import OnProgress
from moe_codegen.evaluation.held_out.documents import digest_of, read_documents, shortened
from moe_codegen.evaluation.held_out.expert_use import encode_kinds, expert_use, expert_use_record
from moe_codegen.evaluation.held_out.line_completion import complete_places, tasks_for
from moe_codegen.evaluation.held_out.line_places import choose_places
from moe_codegen.evaluation.loaded_model import LoadedModel, describe_versions, load
from moe_codegen.evaluation.run_folder import MEASURES, claim, read_measure, writable
from moe_codegen.evaluation.settings import MeasureSettings, ModelSettings
from moe_codegen.metrics import Document, document_losses, encode_documents, start_token
from moe_codegen.metrics.windows import count_windows, window_length
from moe_codegen.modeling import MoEConfig
from moe_codegen.settings import as_record
from moe_codegen.whole_file import write_whole


def measure(
    model: str | Path | LoadedModel,
    data: str | Path | Sequence[Document],
    out: str | Path,
    settings: MeasureSettings | None = None,
    model_settings: ModelSettings | None = None,
    *,
    name: str = "",
    on_progress: OnProgress = lambda title, done, total: None,
) -> dict[str, dict[str, Any]]:
    """Measure a model on held-out files and write each measure to `out`; returns what the files hold.

    Args:
        model: dense or mixture, a folder or Hub id, as `load_model` takes it; or one that is loaded.
        data: as `read_documents` reads it; or what it read.
        out: a folder: new, of an evaluation run of the same model, or of a measurement that was broken off.
        settings, model_settings: None takes the defaults.
        name: the model's, in tables; empty: its folder's.
        on_progress: called with what is going on, how much is done, and of how much.

    Raises:
        ConfigError: settings that do not fit the model or the data.
        OutputError: `out` holds results of another model, or measures of other settings or other documents.
    """
    settings, model_settings = settings or MeasureSettings(), model_settings or ModelSettings()
    out = Path(out)
    with writable(out):
        documents = documents_for(data, settings) if isinstance(data, str | Path) else data
        loaded = load(model, model_settings, name)
        subject = {"model": loaded.record, "settings": as_record(settings), "documents": _account(documents)}
        wanted = [each for each in MEASURES if each != "routing" or isinstance(loaded.model.config, MoEConfig)]
        claim(out, loaded.record["files"])
        done = {each: found for each in wanted if (found := read_measure(out, each)) is not None}
        _check_same(out, done, subject)
        job = _Job(loaded.model, loaded.tokenizer, documents, settings, model_settings.batch_size, on_progress)
        for each in wanted:
            if each not in done:
                start = time.perf_counter()
                made = {"loss": _loss, "completion": _completion, "routing": _routing}[each](job)
                seconds = time.perf_counter() - start
                done[each] = {"measure": each, **subject, "seconds": seconds, "versions": describe_versions(), **made}
                write_whole(out / f"{each}.json", (json.dumps(done[each], ensure_ascii=False) + "\n").encode())
    return done


def documents_for(data: str | Path, settings: MeasureSettings) -> list[Document]:
    """The held-out files that `settings` choose, as `read_documents` reads them."""
    return read_documents(
        data,
        settings.languages,
        documents=settings.documents,
        per_repository=settings.per_repository,
        seed=settings.seed,
    )


@dataclass(frozen=True)
class _Job:
    """What a measure is made from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: Sequence[Document]
    settings: MeasureSettings
    batch_size: int
    on_progress: OnProgress

    @property
    def short(self) -> list[Document]:
        """The documents' beginnings, on which loss and routing are measured."""
        return [shortened(document, self.settings.characters) for document in self.documents]

    def counter(self, title: str, total: int) -> Callable[[int], None]:
        """Called with how much more is done, it says how much that is in all."""
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.on_progress(title, done, total)

        return advance


def _loss(job: _Job) -> dict[str, Any]:
    encoded = encode_documents(job.tokenizer, job.short)
    windows = count_windows(encoded, window_length(job.model, job.settings.window))
    start = time.perf_counter()
    losses = document_losses(
        job.model,
        encoded,
        start_token(job.tokenizer),
        window=job.settings.window,
        batch_tokens=job.settings.batch_tokens,
        on_windows=job.counter("loss", windows),
    )
    seconds = time.perf_counter() - start
    arrays = {name: getattr(losses, name).tolist() for name in ("nats", "tokens", "bytes")}
    names = {name: list(getattr(losses, name)) for name in ("names", "repositories", "languages")}
    return {"losses": names | arrays, "tokens_per_second": int(losses.tokens.sum()) / seconds}


def _completion(job: _Job) -> dict[str, Any]:
    settings = job.settings
    places = choose_places(job.documents, settings.places, settings.characters, settings.seed)
    tasks = tasks_for(job.tokenizer) if places else []
    advance = job.counter("completion", len(places) * len(tasks))
    completions = [
        asdict(completion)
        for task in tasks
        for completion in complete_places(
            job.model,
            job.tokenizer,
            places,
            task,
            context=settings.context,
            max_new_tokens=settings.max_new_tokens,
            batch_size=job.batch_size,
            on_places=advance,
        )
    ]
    return {"tasks": tasks, "completions": completions}


def _routing(job: _Job) -> dict[str, Any]:
    documents, settings = encode_kinds(job.tokenizer, job.short), job.settings
    counts = expert_use(
        job.model,
        documents,
        start_token(job.tokenizer),
        window=settings.window,
        batch_tokens=settings.batch_tokens,
        on_windows=job.counter("routing", count_windows(documents, window_length(job.model, settings.window))),
    )
    return {"expert_names": job.model.config.expert_names, **expert_use_record(counts)}


def _check_same(out: Path, done: Mapping[str, Mapping[str, Any]], subject: Mapping[str, Any]) -> None:
    """Refuse to put measures beside results of something else."""
    for name, record in done.items():
        for part, value in subject.items():
            # A model is its files and settings; what it is called and where it runs may change.
            before, now = ({**each, "device": None, "name": None} for each in (record[part], value))
            if before != now:
                raise OutputError(f"{out / name}.json is of other {part}; give another folder, or remove it")


def _account(documents: Sequence[Document]) -> dict[str, Any]:
    """What the documents are, as far as a reader wants to know."""
    files = Counter(document.language for document in documents)
    repositories = Counter(language for language, _ in {(each.language, each.repository) for each in documents})
    return {
        "sha256": digest_of(documents),
        "files": dict(files),
        "repositories": {one: repositories[one] for one in files},
    }
