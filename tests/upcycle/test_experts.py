"""Experts from several checkpoints, and experts made to differ: which numbers they hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen import upcycle
from moe_codegen.upcycle import verify
from moe_codegen.upcycle.weights import blend
from tests.upcycle.checkpoints import config_of, copy_of, dense, hashes_of, tensors_of, tuned

LAYER = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Two checkpoints tuned from phi."""
    folder = tmp_path_factory.mktemp("experts")
    return {name: tuned(dense("phi"), folder / name, seed) for seed, name in enumerate(("python", "rust"), 1)}


def joined(experts, out, **options):
    report = upcycle(dense("phi"), out, experts=experts, **options)
    return tensors_of(out), report


def test_each_checkpoint_becomes_an_expert_in_the_order_given(experts, tmp_path):
    tensors, report = joined(experts, tmp_path / "moe")
    assert config_of(tmp_path / "moe")["expert_names"] == ["python", "rust"]
    assert report.config.num_experts == 2
    for index, folder in enumerate(experts.values()):
        theirs = tensors_of(folder)
        for ours, name in (("up_proj", "fc1.weight"), ("up_proj_bias", "fc1.bias"), ("down_proj", "fc2.weight")):
            assert torch.equal(tensors[f"{LAYER}.experts.{ours}"][index], theirs[f"{LAYER}.{name}"])
    base = tensors_of(dense("phi"))
    assert all(torch.equal(tensor, base[name]) for name, tensor in tensors.items() if ".mlp." not in name)


def test_a_list_is_named_by_its_folders_and_the_base_may_be_an_anchor(experts, tmp_path):
    base = dense("phi")
    joined([base, *experts.values()], tmp_path / "moe", dry_run=False)
    assert config_of(tmp_path / "moe")["expert_names"] == [base.name, "python", "rust"]
    tensors = tensors_of(tmp_path / "moe")
    assert torch.equal(tensors[f"{LAYER}.experts.up_proj"][0], tensors_of(base)[f"{LAYER}.fc1.weight"])


@pytest.mark.parametrize(
    ("shared", "weights"),
    [("average", (0.5, 0.5)), ({"python": 3, "rust": 1}, (0.75, 0.25)), ({"rust": 2}, (0, 1))],
)
def test_everything_outside_the_experts_is_blended_as_asked(shared, weights, experts, tmp_path):
    tensors, _ = joined(experts, tmp_path / "moe", shared=shared, shared_expert=True)
    python, rust = (tensors_of(folder) for folder in experts.values())
    for ours, theirs in (
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.2.self_attn.q_proj.bias", "model.layers.2.self_attn.q_proj.bias"),
        (f"{LAYER}.shared_expert.fc1.weight", f"{LAYER}.fc1.weight"),
    ):
        expected = weights[0] * python[theirs] + weights[1] * rust[theirs]
        torch.testing.assert_close(tensors[ours], expected, rtol=1e-5, atol=1e-6)


def test_the_base_can_have_a_share_of_its_own(experts, tmp_path):
    tensors, _ = joined(experts, tmp_path / "moe", shared={"base": 1, "python": 1})
    name = "model.layers.0.self_attn.dense.weight"
    expected = (tensors_of(dense("phi"))[name] + tensors_of(experts["python"])[name]) / 2
    torch.testing.assert_close(tensors[name], expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_the_same_base_in_another_layout_is_welcome(tmp_path):
    """The base as it was published, an expert as transformers saves it after training without dropout."""
    dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "eos_token_id": 1}
    expert = copy_of(dense("gpt_bigcode"), tmp_path / "tuned", **dropout)
    upcycle(dense("santacoder"), tmp_path / "moe", experts={"a": expert, "b": dense("santacoder")})
    assert verify(dense("santacoder"), tmp_path / "moe").passed


def test_equal_tensors_blend_to_themselves_bit_for_bit():
    tensor = torch.randn(3000, 3).half()
    blended = torch.cat(list(blend([tensor, tensor, tensor], [0.2, 0.3, 0.5]))).half()
    assert torch.equal(blended, tensor)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(1, 5000))
def test_a_blend_is_the_weighted_sum_whatever_its_blocks(weights, rows):
    weights = [weight / sum(weights) for weight in weights]
    tensors = [torch.randn(rows, 2) for _ in weights]
    expected = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    torch.testing.assert_close(torch.cat(list(blend(tensors, weights))), expected, rtol=1e-4, atol=1e-5)


# Diversification


def ffn_of(folder, layer=1):
    """fc1 (E, F, D), its bias (E, F), fc2 (E, D, F), its bias (E, D)."""
    tensors = tensors_of(folder)
    names = ("up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
    return [tensors[f"model.layers.{layer}.mlp.experts.{name}"] for name in names]


def dense_ffn(layer=1):
    tensors = tensors_of(dense("phi"))
    return [
        tensors[f"model.layers.{layer}.mlp.{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    ]


def test_noise_has_the_size_asked_for_beside_each_tensors_own(tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=6, noise_std=0.25)
    for experts, original in zip(ffn_of(tmp_path / "moe"), dense_ffn(), strict=True):
        noise = experts - original
        size = noise.square().mean().sqrt() / original.square().mean().sqrt()
        assert size.item() == pytest.approx(0.25, rel=0.15)
        assert abs(noise.mean().item()) < 5 * noise.std().item() / noise.numel() ** 0.5
        flat = noise.flatten(1)
        correlation = torch.corrcoef(flat) - torch.eye(6)
        assert correlation.abs().max() < 6 / flat.shape[1] ** 0.5  # every expert has its own


@pytest.mark.parametrize("ratio", [0.001, 0.25, 0.5, 1.0])
def test_the_same_hidden_units_are_dropped_everywhere_and_no_others(ratio, tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=4, drop_ratio=ratio)
    (up, up_bias, down, down_bias), (fc1, bias1, fc2, bias2) = ffn_of(tmp_path / "moe"), dense_ffn()
    changed_rows = (up != fc1).any(dim=2)
    assert (changed_rows.sum(dim=1) == max(1, round(ratio * 80))).all()
    assert torch.equal(changed_rows, (down != fc2).any(dim=1))
    if ratio > 0.01:  # one bias alone is drawn with its own mean and no deviation
        assert torch.equal(changed_rows, up_bias != bias1)
    assert torch.equal(down_bias, bias2.expand(4, -1))
    if 0.01 < ratio < 1:
        assert len({tuple(row.tolist()) for row in changed_rows}) == 4  # every expert has its own


def test_what_is_dropped_is_drawn_like_what_it_replaces(tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=8, drop_ratio=1.0)
    for experts, original in zip(ffn_of(tmp_path / "moe")[:3], dense_ffn()[:3], strict=True):
        error = 5 * original.std().item() / original.numel() ** 0.5
        assert experts.mean().item() == pytest.approx(original.mean().item(), abs=error)
        assert experts.std().item() == pytest.approx(original.std().item(), rel=0.1)


def test_gate_and_up_are_each_drawn_from_their_own_statistics(tmp_path):
    def widen_gates(tensors):
        for name in tensors:
            if "gate_proj" in name:
                tensors[name] = 10 * tensors[name] + 7

    source = copy_of(dense("llama"), tmp_path / "wide", widen_gates)
    upcycle(source, tmp_path / "moe", num_experts=2, drop_ratio=0.5)
    gate_up, stored = tensors_of(tmp_path / "moe")[f"{LAYER}.experts.gate_up_proj"], tensors_of(source)
    for experts, name in zip(gate_up.chunk(2, dim=1), ("gate_proj", "up_proj"), strict=True):
        original = stored[f"{LAYER}.{name}.weight"]
        changed = experts[experts != original]
        assert changed.mean().item() == pytest.approx(original.mean().item(), abs=0.2 * original.std().item())
        assert changed.std().item() == pytest.approx(original.std().item(), rel=0.2)
    # The same units in both halves.
    gate_changed, up_changed = (
        (half != stored[f"{LAYER}.{name}.weight"]).any(dim=2)
        for half, name in zip(gate_up.chunk(2, dim=1), ("gate_proj", "up_proj"), strict=True)
    )
    assert torch.equal(gate_changed, up_changed)


@pytest.mark.parametrize("options", [{"noise_std": 0.1}, {"drop_ratio": 0.5}, {"noise_std": 0.1, "drop_ratio": 0.5}])
def test_random_numbers_depend_on_the_seed_alone(options, tmp_path):
    options = {**options, "num_experts": 4, "max_shard_size": "20KB"}
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    upcycle(dense("phi"), first, workers=1, **options)
    upcycle(dense("phi"), again, workers=4, **options)
    upcycle(dense("phi"), other, seed=1, **options)
    assert hashes_of(first) == hashes_of(again)
    assert all(not torch.equal(a, b) for a, b in zip(ffn_of(first)[:3], ffn_of(other)[:3], strict=True))


def test_layers_get_numbers_of_their_own(tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=2, noise_std=0.1)
    noise = [ffn_of(tmp_path / "moe", layer)[0] - dense_ffn(layer)[0] for layer in (0, 1)]
    assert torch.corrcoef(torch.stack([n.flatten() for n in noise]))[0, 1].abs() < 0.1


def test_verify_says_where_diversified_experts_first_depart(tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=4, noise_std=0.1, layers="1,2")
    report = verify(dense("phi"), tmp_path / "moe")
    assert report.first_departure == "layer 1"
    assert not report.damaged
    assert not report.passed
