"""`upcycle`: from dense checkpoints on disk to a mixture of experts on disk."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint import StagedFolder, commit_of, free_bytes, resolve_target
from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.upcycle.card import mixture_card
from moe_codegen.upcycle.options import FROM_TEXT, RouterInit, UpcycleOptions
from moe_codegen.upcycle.output import write_checkpoint
from moe_codegen.upcycle.plan import Plan, make_plan
from moe_codegen.upcycle.provenance import provenance_of, version_of
from moe_codegen.upcycle.router import check_router_texts, make_routers
from moe_codegen.upcycle.sources import Sources, open_sources

DEFAULT_NUM_EXPERTS = 8
# What each worker holds at once: a source tensor and its cast; to make experts differ, also some in fp32.
COPIES_IN_MEMORY = 2
COPIES_TO_DIVERSIFY = 6


@dataclass(frozen=True)
class UpcycleReport:
    """What a conversion did, or with `dry_run` would do.

    Attributes:
        out: the folder of the mixture.
        plan: every tensor with its origin, shape, dtype, bytes and file.
        dry_run: whether nothing was written.
        free_bytes: space on the target's disk before writing.
        memory_bytes: estimate of the most held in memory at once, beside Python and its libraries.
        seconds: for each step, "scan", "router" and "write".
        files: file -> {"bytes", "sha256"} of the weights written.
        warnings: what the user should know of the result.
    """

    out: Path
    plan: Plan
    dry_run: bool
    free_bytes: int
    memory_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def config(self) -> MoEConfig:
        """The mixture's configuration."""
        return self.plan.config


def upcycle(
    source: str | Path,
    out: str | Path,
    *,
    experts: Mapping[str, str | Path] | Iterable[str | Path] | None = None,
    num_experts: int | None = None,
    top_k: int = 2,
    layers: str | Iterable[int] = "all",
    granularity: int = 1,
    shared_expert: bool = False,
    renormalise: bool = True,
    shared: str | Mapping[str, float] = "base",
    noise_std: float = 0.0,
    drop_ratio: float = 0.0,
    router: RouterInit = "normal",
    router_std: float = 0.02,
    router_data: Mapping[str, list[str]] | None = None,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> UpcycleReport:
    """Turn a dense checkpoint, or several tuned from one base, into a top-k mixture of experts.

    Every check that can be made is made before a weight is written. The result appears at `out` whole or not at all:
    a killed conversion leaves `<out>.partial`, and the same call goes on from there to the same bytes.

    Args:
        source: the dense base, a folder or hub id (also ID@REVISION) with safetensors weights in any layout of a
            supported family.
        out: folder to create; it must not exist, or be empty.
        experts: checkpoints tuned from the base, name -> path (or paths, named by their folders), whose FFNs become
            the experts in this order. None: the base's own FFN is copied. The base may itself be one of them.
        num_experts: experts in each sparse layer; 8 copies, or one for each of `experts` (times `granularity`).
        top_k: experts that take each token.
        layers: "all", indices, or text such as "0,2,8-11"; the others stay dense.
        granularity: G cuts each FFN into G experts (arXiv 2410.07524); `num_experts` and `top_k` count the cuts.
            A power of two loses nothing; scaling by another G rounds the second matrix.
        shared_expert: keep the dense FFN as an expert that takes every token, with half of the output.
        renormalise: whether a token's k weights are made to sum to one. Without it copies no longer compute what
            the dense FFN did.
        shared: the tensors outside the experts: "base", "average" over `experts`, or a weight for each.
        noise_std: Gaussian noise on each expert, as a multiple of each tensor's root mean square.
        drop_ratio: share of each expert's hidden units to re-initialise (Drop-Upcycling, arXiv 2502.19261).
        router: "normal" or "orthogonal", random; "hidden", "centroid" or "ridge", from `router_data`.
        router_std: standard deviation of a random router's weights.
        router_data: expert name -> texts in what that expert is good at.
        dtype: "float32", "float16" or "bfloat16"; None keeps the source's, tensor by tensor.
        max_shard_size: of one weight file.
        seed: of every random number; the bytes written depend on it and not on `workers`.
        workers: files written at once; None means one for each core, at most 4.
        dry_run: plan and check, write nothing; of a hub id only settings, tokenizer and headers are downloaded, and
            whether experts descend from the base is checked if all weights are here.
        progress: called as `progress(step, total_bytes, done_bytes)` when a step begins; what it returns is called
            with the bytes of each advance.

    Raises:
        ConfigError: settings that cannot hold.
        CheckpointError, MismatchError: a source that cannot be used, or does not belong to the base.
        OutputError: the target is not empty or not writable, or its disk is too small.
        ResumeError: `<out>.partial` was started with other settings or other sources.
    """
    out = resolve_target(out)
    sources = open_sources(source, experts)
    options = UpcycleOptions(
        num_experts=_num_experts(num_experts, sources, granularity),
        top_k=top_k,
        layers=list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else layers,
        granularity=granularity,
        shared_expert=shared_expert,
        renormalise=renormalise,
        shared=dict(shared) if isinstance(shared, Mapping) else shared,
        noise_std=noise_std,
        drop_ratio=drop_ratio,
        router=router,
        router_std=router_std,
        dtype=dtype,
        max_shard_size=max_shard_size,
        seed=seed,
    )
    check_router_texts(router, router_data, list(sources.experts) or None)
    plan = make_plan(sources, options)
    workers = _num_workers(workers)
    copies = COPIES_TO_DIVERSIFY if noise_std or drop_ratio else COPIES_IN_MEMORY
    report = UpcycleReport(
        out=out,
        plan=plan,
        dry_run=dry_run,
        free_bytes=free_bytes(out),
        memory_bytes=copies * plan.largest_piece_bytes * min(workers, len(plan.shards)),
        warnings=_warnings(options, sources),
    )
    if dry_run:
        return report
    staged = StagedFolder(out, _fingerprint(sources, options, router_data))
    staged.check_space(plan.nbytes, sources.to_download)
    sources.fetch()
    with _timed(report.seconds, "scan"):
        hashes = sources.scan(workers, options.torch_dtype, progress("reading the sources", sources.nbytes, 0))
    with _timed(report.seconds, "router"):
        plan.routers.update(make_routers(sources.base, plan.config, options, router_data))
    base = sources.base.reader.folder
    with _timed(report.seconds, "write"):
        files = write_checkpoint(
            staged,
            plan.shards,
            base,
            record=lambda files: provenance_of(plan, sources, options, hashes, files),
            card=lambda record: mixture_card(plan, record, base, report.warnings),
            write_config=plan.config.save_pretrained,
            step="writing the mixture",
            progress=progress,
            workers=workers,
        )
    report.files.update(files)
    return report


def _num_workers(asked: int | None) -> int:
    if asked is not None and not (isinstance(asked, int) and asked >= 1):
        raise ConfigError(f"workers={asked!r} must be at least 1 and whole; leave it out for one per core")
    return asked or min(4, os.cpu_count() or 1)


def _num_experts(asked: int | None, sources: Sources, granularity: int) -> int:
    if not (isinstance(granularity, int) and granularity >= 1):
        raise ConfigError(f"granularity={granularity!r} must be at least 1 and whole; 1 splits nothing")
    if not sources.experts:
        return DEFAULT_NUM_EXPERTS * granularity if asked is None else asked
    given = len(sources.experts) * granularity
    if asked not in (None, given):
        raise ConfigError(
            f"num_experts={asked}, but {len(sources.experts)} checkpoints split in {granularity} make {given}; "
            "leave num_experts out, or give as many checkpoints"
        )
    return given


def _warnings(options: UpcycleOptions, sources: Sources) -> list[str]:
    warnings = []
    if not options.renormalise and not sources.experts:
        warnings.append(
            f"renormalise=False: the {options.top_k} chosen weights of {options.num_experts} sum to less than one, "
            "so the mixture starts with its FFN outputs scaled down and must be trained before use"
        )
    if sources.experts and options.router not in FROM_TEXT:
        warnings.append(
            f"router={options.router!r} is random: which expert takes a token has no meaning until it is trained; "
            "'ridge' with router_data starts from what the experts' texts look like"
        )
    if options.granularity.bit_count() > 1:
        warnings.append(
            f"granularity={options.granularity} is no power of two: scaling the second matrices by it rounds them, "
            "and extract gives them back to within that rounding"
        )
    if options.granularity > 1 and not options.renormalise:
        warnings.append("granularity needs renormalised weights for the pieces of an FFN to add up to it")
    if options.top_k == options.num_experts > 1:
        warnings.append(
            f"top_k={options.top_k} of {options.num_experts} experts: every token goes through all of them, so nothing "
            "is saved and the router only weighs them; lower top_k or add experts"
        )
    return warnings


def _fingerprint(sources: Sources, options: UpcycleOptions, texts: Mapping[str, list[str]] | None) -> dict[str, Any]:
    """What a resumed run must have in common with the one it goes on from."""
    return {
        # A list, for the order of the experts is part of the result. A commit is known before its files are here.
        "sources": [
            [name, commit_of(checkpoint.reader.folder) or checkpoint.reader.stamps()]
            for name, checkpoint in sources.checkpoints.items()
        ],
        **options.to_dict(),
        "router_data": texts and hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest(),
        "version": version_of("moe-codegen"),
    }


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Puts the seconds of its block into `seconds[step]`."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
