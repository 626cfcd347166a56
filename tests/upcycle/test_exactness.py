"""A mixture of copies computes what its dense source computes: every layer, the logits, every greedy token."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.upcycle import verify
from tests.tiny import LAYOUTS, TEXT
from tests.upcycle.checkpoints import dense, dense_model_of

TOLERANCE = 5e-6


def relative_error(actual, expected):
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_compute_what_the_dense_model_does(layout, tmp_path):
    source, model = dense(layout), dense_model_of(layout)
    upcycle(source, tmp_path / "moe", num_experts=4)

    report = verify(source, tmp_path / "moe")
    assert report.passed
    assert [row.stage for row in report.rows] == ["layer 0", "layer 1", "layer 2", "logits"]
    assert 0 < report.max_relative_error <= TOLERANCE

    mixture = MoEForCausalLM.from_pretrained(tmp_path / "moe")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moe")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :48]
    with torch.inference_mode():
        expected = model(ids, output_hidden_states=True)
        actual = mixture(ids, output_hidden_states=True)
    assert relative_error(actual.logits, expected.logits) <= TOLERANCE
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE
    # The generation settings, 12 new tokens, come from the source's file.
    said, expected_said = mixture.generate(ids[:, :8]), model.generate(ids[:, :8], max_new_tokens=12)
    assert torch.equal(said, expected_said)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_copies_agree_for_any_shape_of_mixture(data, tmp_path_factory):
    layout = data.draw(st.sampled_from(["santacoder", "phi", "llama", "phi3", "starcoder2"]))
    granularity = data.draw(st.sampled_from([1, 2, 4, 5]))
    copies = data.draw(st.integers(1, 5))
    chosen = data.draw(st.integers(1, copies))
    experts, top_k = copies * granularity, chosen * granularity
    options = dict(
        num_experts=experts,
        top_k=top_k,
        renormalise=not (top_k == 1 and experts > 1),
        granularity=granularity,
        layers=sorted(data.draw(st.sets(st.integers(0, 2), min_size=1))),
        shared_expert=data.draw(st.booleans()),
        router=data.draw(st.sampled_from(["normal", "orthogonal"])),
        max_shard_size=data.draw(st.sampled_from(["10KB", "64KB", "2GB"])),
        workers=data.draw(st.integers(1, 3)),
        seed=data.draw(st.integers(0, 99)),
        dtype=data.draw(st.sampled_from([None, "bfloat16", "float16"])),
    )
    source, out = dense(layout), tmp_path_factory.mktemp("any") / "moe"
    upcycle(source, out, **options)
    report = verify(source, out)
    assert not report.damaged
    if options["renormalise"]:
        # A split scales the second matrix by G; if that is no power of two, a narrow dtype rounds it.
        rounds = options["granularity"] == 5 and options["dtype"] is not None
        assert report.max_relative_error <= (2e-2 if rounds else TOLERANCE)
    else:
        assert report.first_departure is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["santacoder", "phi", "llama"])
def test_verify_judges_the_conversion_and_not_the_dtype(layout, dtype, tmp_path):
    """Stored in a narrow dtype the weights are the dense model's own; converted to one, both are rounded alike."""
    upcycle(dense(layout, dtype), tmp_path / "same", num_experts=2)
    assert verify(dense(layout, dtype), tmp_path / "same").passed
    upcycle(dense(layout), tmp_path / "cast", num_experts=2, dtype=str(dtype).removeprefix("torch."))
    assert verify(dense(layout), tmp_path / "cast").passed


def test_without_renormalisation_the_report_warns_and_the_outputs_are_scaled_down(tmp_path):
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=4, renormalise=False)
    assert any("must be trained before use" in warning for warning in report.warnings)
    assert verify(dense("phi"), tmp_path / "moe").first_departure == "layer 0"


def test_layers_that_are_not_asked_for_stay_dense(tmp_path):
    upcycle(dense("starcoder2"), tmp_path / "moe", num_experts=2, layers="1-2")
    report = verify(dense("starcoder2"), tmp_path / "moe")
    assert report.passed
    assert [row.expert_load is None for row in report.rows] == [True, False, False, True]
    assert all(sum(row.expert_load) == pytest.approx(1) for row in report.rows if row.expert_load)


def test_the_experts_are_used_unevenly_but_not_always_the_same_two(tmp_path):
    """A router of zeros would tie and send every token to experts 0 and 1."""
    upcycle(dense("phi"), tmp_path / "moe", num_experts=8)
    for row in verify(dense("phi"), tmp_path / "moe").rows[:-1]:
        assert sum(share > 0 for share in row.expert_load) > 4
