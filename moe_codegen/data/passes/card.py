"""The dataset card of a folder of shards: what `datasets.load_dataset(FOLDER)`, the Hub and people read of it."""

from collections.abc import Sequence
from pathlib import Path

from moe_codegen.data.passes.tables import markdown, stages_of
from moe_codegen.data.passes.tally import KEPT, UNKNOWN, Record

CARD = "README.md"
Splits = dict[str, str]  # split -> the pattern of its files, relative to the card

# Licences that the Hub knows by these names (its documentation, "Repository licenses"); any other is `other` there.
_HUB_LICENSES = """
unknown apache-2.0 mit afl-3.0 agpl-3.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc0-1.0
ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc lgpl-2.1 lgpl-3.0 mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 pddl
postgresql unlicense wtfpl zlib
"""
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def folder_splits(manifest: Record, folder: str = "") -> Splits:
    """The splits of a verb's output that lies in `folder` beside the card: a sub-folder each, or `train` alone.

    A split without rows is left out, since `load_dataset` fails on it, unless it is the only one.
    """
    shards = manifest["shards"]
    parents = sorted({Path(shard["name"]).parent.name for shard in [s for s in shards if s["rows"]] or shards[:1]})
    return {parent or "train": str(Path(folder, parent, "*.parquet")) for parent in parents}


def write_card(folder: Path, configs: dict[str, Splits], manifests: Sequence[Record]) -> None:
    """Write the card of `configs`, of which the first is loaded where none is named; `manifests` begin with its own.

    Licences are those that a verb counted last: a later one may have dropped every file of one. Sizes are in rows.
    """
    from huggingface_hub import DatasetCardData

    stages, main = stages_of(manifests), manifests[0]
    languages = sorted(set(main.get("tally", {}).get(KEPT, {})) - {UNKNOWN})
    header = DatasetCardData(
        language=["code"],
        license=_licenses(stages),
        size_categories=[_size(main["rows"])],
        task_categories=["text-generation"],
        tags=["code", *languages],
        configs=[
            {
                "config_name": name,
                **({} if place else {"default": True}),
                "data_files": [{"split": split, "path": pattern} for split, pattern in splits.items()],
            }
            for place, (name, splits) in enumerate(configs.items())
        ],
    )
    title = f"# Code: {', '.join(languages)}\n"
    made = f"{main['rows']:,} rows, made with `moe-codegen data` {main['version']}. What each step kept and dropped:\n"
    text = ["---", header.to_yaml(), "---", title, made, *markdown(stages)]
    (folder / CARD).write_text("\n".join(text), encoding="utf-8")


def _licenses(stages: list[Record]) -> list[str]:
    """The Hub's names of the licences in the last stage that counted them."""
    counted = [stage["licenses"] for stage in stages if "licenses" in stage]
    names = {name.lower() for joined in (counted[-1] if counted else ()) for name in joined.split(", ")}
    return sorted({name if name in _HUB_LICENSES.split() else "other" for name in names}) or ["unknown"]


def _size(rows: int) -> str:
    """The Hub's category of so many rows, such as `1K<n<10K`."""
    above = sum(rows >= 1000 * 10**place for place in range(len(_SIZES)))
    if above == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[above - 1]}<n<{_SIZES[above]}" if above < len(_SIZES) else f"n>{_SIZES[-1]}"
