"""The conversion as a whole: what it plans, what it writes, and that how it is run changes nothing."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from huggingface_hub import metadata_load
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from moe_codegen import MoEForCausalLM, export, extract, quantise, upcycle
from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.errors import ConfigError
from moe_codegen.upcycle import verify
from moe_codegen.upcycle.options import parse_layers, parse_size
from tests.tiny import LAYOUTS, save_dense
from tests.upcycle.checkpoints import Steps, config_of, copy_of, dense, hashes_of, headers_of, tuned


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("layout", ["santacoder", "phi-msft", "qwen3"])
def test_a_dry_run_plans_every_tensor_and_touches_nothing(layout, tmp_path):
    source = copy_of(dense(layout), tmp_path / "source")
    before = snapshot(tmp_path)
    dry = upcycle(source, tmp_path / "deep" / "moe", num_experts=4, max_shard_size="30KB", dry_run=True)
    assert snapshot(tmp_path) == before
    assert dry.dry_run
    assert not dry.files
    assert dry.free_bytes > dry.plan.nbytes

    wet = upcycle(source, tmp_path / "deep" / "moe", num_experts=4, max_shard_size="30KB")
    headers = headers_of(tmp_path / "deep" / "moe")
    planned = {record["name"]: record for record in dry.plan.records()}
    assert planned == {record["name"]: record for record in wet.plan.records()}
    assert set(planned) == set(headers)
    for name, header in headers.items():
        record = planned[name]
        assert (tuple(record["shape"]), record["dtype"], record["bytes"], record["file"]) == (
            header.shape,
            str(header.dtype).removeprefix("torch."),
            header.nbytes,
            header.file,
        )
    assert dry.plan.nbytes == sum(header.nbytes for header in headers.values())
    assert dry.plan.num_parameters == sum(torch.Size(header.shape).numel() for header in headers.values())


def test_the_number_of_workers_changes_no_byte_of_anything(tmp_path):
    for workers in (1, 2, 4):
        upcycle(dense("phi"), tmp_path / str(workers), num_experts=4, max_shard_size="20KB", workers=workers)
    assert len(hashes_of(tmp_path / "1")) > 8
    assert hashes_of(tmp_path / "1") == hashes_of(tmp_path / "2") == hashes_of(tmp_path / "4")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_source_tensor_goes_somewhere_and_every_target_comes_from_somewhere(layout, tmp_path):
    report = upcycle(dense(layout), tmp_path / "moe", num_experts=2, layers="0,2", shared_expert=True, dry_run=True)
    sources = [source for planned in report.plan.tensors for source in planned.sources]
    assert set(sources) == {f"base:{name}" for name in DenseCheckpoint(dense(layout))}
    made_of_nothing = [planned.tensor.name for planned in report.plan.tensors if not planned.sources]
    assert all(name.endswith(".gate.weight") for name in made_of_nothing)
    assert len(made_of_nothing) == 2


def test_the_provenance_is_complete_and_its_hashes_are_right(tmp_path):
    snapshots = tmp_path / "models--org--tuned" / "snapshots"  # as in the hub's cache, each called by its commit
    snapshots.mkdir(parents=True)
    experts = {name: tuned(dense("phi"), snapshots / name, seed) for seed, name in enumerate(("rust", "c"))}
    out = tmp_path / "moe"
    report = upcycle(dense("phi"), out, experts=experts, max_shard_size="30KB", seed=7)
    provenance = json.loads((out / "upcycle.json").read_text())

    def sha256(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert set(provenance) == {"source", "experts", "options", "versions", "files", "tensors"}
    assert provenance["source"] == {
        "given": str(dense("phi")),
        "layout": "phi",
        "commit": None,
        "sha256": {"model.safetensors": sha256(dense("phi") / "model.safetensors")},
    }
    for name, folder in experts.items():
        expected = {"model.safetensors": sha256(folder / "model.safetensors")}
        assert provenance["experts"][name] == {"given": str(folder), "commit": name, "sha256": expected}
    assert list(provenance["experts"]) == ["rust", "c"]
    assert provenance["options"]["seed"] == 7
    assert set(provenance["versions"]) == {"moe-codegen", "torch", "transformers", "safetensors"}
    weights = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(weights) > 1
    assert provenance["files"] == report.files
    assert {name: entry["sha256"] for name, entry in provenance["files"].items()} == {
        name: sha256(out / name) for name in weights
    }
    assert set(provenance["tensors"]) == set(headers_of(out))
    stacked = provenance["tensors"]["model.layers.0.mlp.experts.up_proj"]
    assert stacked["from"] == ["rust:model.layers.0.mlp.fc1.weight", "c:model.layers.0.mlp.fc1.weight"]
    assert stacked["how"] == "2 checkpoints"


def test_what_lies_beside_the_weights_travels_along_but_none_of_its_code_and_no_old_card(tmp_path):
    source = copy_of(dense("santacoder"), tmp_path / "source")
    extra = ("LICENSE", "LICENSE-MODEL.md", "merges.txt", "special_tokens_map.json", "chat_template.jinja")
    for name in (*extra, "modeling_gpt2_mq.py", "README.md", "pytorch_model.bin", "training_args.bin"):
        (source / name).write_text("{}")
    upcycle(source, tmp_path / "moe", num_experts=2)
    assert {path.name for path in (tmp_path / "moe").iterdir()} == {
        *extra,
        "README.md",
        "config.json",
        "moe_codegen_classes.py",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "upcycle.json",
    }
    assert (tmp_path / "moe" / "README.md").read_text() != "{}"
    assert AutoTokenizer.from_pretrained(tmp_path / "moe").encode("def")
    assert GenerationConfig.from_pretrained(tmp_path / "moe").max_new_tokens == 12


def test_the_card_says_what_it_is_and_the_notes(tmp_path):
    experts = {name: tuned(dense("phi"), tmp_path / name, seed) for seed, name in enumerate(("rust", "c"))}
    report = upcycle(dense("phi"), tmp_path / "moe", experts=experts, layers="0-1")
    card = (tmp_path / "moe" / "README.md").read_text()
    for fact in ("2 of 3 layers are mixtures", "They are: rust, c.", "2 checkpoints", str(dense("phi"))):
        assert fact in card
    assert report.warnings
    assert all(warning in card for warning in report.warnings)


CARD_OF_THE_BASE = "---\nlicense: bigcode-openrail-m\ntags: [code]\n---\n# A base\n"


def test_every_verb_leaves_a_card_with_licence_and_base_and_a_record_with_hashes(tmp_path, monkeypatch):
    base = tmp_path / "models--org--base" / "snapshots" / "c0ffee"  # as in the hub's cache
    base.parent.mkdir(parents=True)
    copy_of(dense("llama", intermediate_size=96), base)
    (base / "README.md").write_text(CARD_OF_THE_BASE)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(base))
    upcycle("org/base@main", tmp_path / "moe", num_experts=3)
    extract(tmp_path / "moe", tmp_path / "dense")
    export(tmp_path / "moe", tmp_path / "mixtral")
    quantise(tmp_path / "moe", tmp_path / "int8")
    for name in ("moe", "dense", "mixtral", "int8"):
        settings = metadata_load(tmp_path / name / "README.md")
        assert (settings["license"], settings["base_model"]) == ("bigcode-openrail-m", "org/base")
        record = json.loads((tmp_path / name / "upcycle.json").read_text())
        assert record["files"]["model.safetensors"]["sha256"] == hashes_of(tmp_path / name)["model.safetensors"]
        origin = record["source"] if name == "moe" else record["source_record"]["source"]
        assert (origin["given"], origin["commit"]) == ("org/base@main", "c0ffee")
        (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / name / "README.md").read_text(), re.DOTALL)
        found: dict = {}
        exec(code.replace('"."', repr(str(tmp_path / name))), found)
        assert found["model"].config.num_hidden_layers == 3
        assert found["tokenizer"].encode("def")


@pytest.mark.parametrize(("main", "norms"), [("float16", torch.float32), ("float32", torch.bfloat16)])
@pytest.mark.parametrize("layout", ["santacoder", "phi-msft", "qwen2"])
def test_the_config_names_the_dtype_of_the_weights_and_not_of_buffers_or_of_a_few_norms(layout, main, norms, tmp_path):
    def other_norms_and_boolean_masks(tensors):
        for name, tensor in tensors.items():
            if "norm" in name or ".ln" in name:
                tensors[name] = tensor.to(norms)
            if tensor.dtype == torch.uint8:
                tensors[name] = tensor.bool()

    source = copy_of(dense(layout, getattr(torch, main)), tmp_path / "mixed", other_norms_and_boolean_masks)
    upcycle(source, tmp_path / "moe", num_experts=2)
    assert config_of(tmp_path / "moe")["dtype"] == main
    stored = {header.dtype for header in headers_of(tmp_path / "moe").values()}
    assert stored == {getattr(torch, main), norms}  # each tensor keeps its own
    assert MoEForCausalLM.from_pretrained(tmp_path / "moe", dtype="auto").dtype == getattr(torch, main)
    upcycle(source, tmp_path / "cast", num_experts=2, dtype="bfloat16")
    assert config_of(tmp_path / "cast")["dtype"] == "bfloat16"
    assert {header.dtype for header in headers_of(tmp_path / "cast").values()} == {torch.bfloat16}


def test_places_may_be_given_in_any_way(tmp_path, monkeypatch):
    source = copy_of(dense("phi"), tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot_like = tmp_path / "links"
    snapshot_like.mkdir()
    for file in source.iterdir():
        (snapshot_like / file.name).symlink_to(file)
    for named, out in (("source", "one/"), ("./source/", "~/two"), ("~/source", "source/inside"), ("links", "four")):
        report = upcycle(named, out, num_experts=2)
        assert report.out.is_absolute()
        assert not any(path.is_symlink() for path in report.out.iterdir())
        assert verify(source, report.out).passed
    assert {path.name for path in tmp_path.iterdir()} == {"source", "links", "one", "two", "four"}


def test_progress_counts_every_byte_read_and_written(tmp_path):
    steps = Steps()
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=4, workers=2, max_shard_size="30KB", progress=steps)
    (reading, to_read, _), (writing, to_write, done) = steps.begun
    assert (reading, writing, done) == ("reading the sources", "writing the mixture", 0)
    assert to_write == steps.advanced[1] == report.plan.nbytes
    assert 0 <= steps.advanced[0] - to_read < 100_000  # files have headers, too
    assert set(report.seconds) == {"scan", "router", "write"}


def test_the_memory_it_foretells_is_that_of_ffn_tensors_not_of_stacks_of_them(tmp_path):
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=16, workers=1, dry_run=True)
    assert report.memory_bytes == 2 * 128 * 32 * 4  # the embedding, the largest tensor that is not stacked


@given(st.sets(st.integers(0, 30), min_size=1))
def test_layers_are_understood_in_every_form(layers):
    assert parse_layers(sorted(layers), 31) == sorted(layers)
    assert parse_layers(",".join(map(str, layers)), 31) == sorted(layers)
    assert parse_layers(f" {min(layers)} - {max(layers)} ".replace(" - ", "-"), 31) == list(
        range(min(layers), max(layers) + 1)
    )
    assert parse_layers("all", 31) == list(range(31))


@pytest.mark.parametrize(("text", "nbytes"), [("500MB", 500_000_000), ("2GB", 2 * 10**9), (" 1.5 kb ", 1500)])
def test_sizes_are_decimal_as_disks_are_sold(text, nbytes):
    assert parse_size(text) == nbytes


def test_layers_may_be_any_iterable(tmp_path):
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=2, layers=range(1, 3))
    assert report.config.moe_layers == [1, 2]


def test_a_single_expert_name_may_be_anything_a_file_system_takes(tmp_path):
    names = ["c++", "объект", "a/b", "with space"]
    experts = {name: tuned(dense("phi"), tmp_path / str(seed), seed) for seed, name in enumerate(names)}
    upcycle(dense("phi"), tmp_path / "moe", experts=experts)
    assert MoEForCausalLM.from_pretrained(tmp_path / "moe").config.expert_names == names


def test_a_source_of_several_shards_converts_to_the_same_weights(tmp_path):
    model = save_dense(tmp_path / "one", "phi")
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    (tmp_path / "many" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    one = upcycle(tmp_path / "one", tmp_path / "a", num_experts=2)
    many = upcycle(tmp_path / "many", tmp_path / "b", num_experts=2)
    assert one.files == many.files


def test_workers_must_be_some(tmp_path):
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        upcycle(dense("phi"), tmp_path / "moe", workers=0)


@pytest.mark.parametrize(("num_experts", "top_k", "warned"), [(2, 2, True), (3, 2, False), (1, 1, False)])
def test_a_mixture_that_is_not_sparse_is_said_to_be_none(num_experts, top_k, warned, tmp_path):
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=num_experts, top_k=top_k, dry_run=True)
    assert any("every token goes through all" in warning for warning in report.warnings) == warned
