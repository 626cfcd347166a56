"""Experts packed for inference: the layout, the op, and its errors."""

import functools
from dataclasses import replace

import pytest
import torch

from moe_codegen_kernels import oracle, pack_matrices, packed_expert_ffn, unpack_matrices, why_not_packed
from moe_codegen_kernels.cpu import compiled
from tests.kernels.cpu.conftest import CAPABILITIES
from tests.kernels.problems import LOADS, eager_expert_ffn, make_problem, relative_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = [pytest.mark.usefixtures("cpu_path"), pytest.mark.parametrize("cpu_path", CAPABILITIES, indirect=True)]


def packed_of(problem):
    return replace(problem, up=pack_matrices(problem.up), down=pack_matrices(problem.down))


def run(function, problem):
    return function(*problem.arguments(), activation=problem.activation, gated=problem.gated)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 37, 300])
def test_no_worse_than_eager_for_every_number_of_rows(tokens, load, dtype):
    problem = make_problem(tokens, 96, 160, load=load)
    truth_TD = run(oracle.expert_ffn, problem.to(torch.float64, torch.float64))
    rounded = problem.to(dtype)
    eager = relative_error(run(eager_expert_ffn, rounded), truth_TD)
    allowed = max(1.5 * eager, 2 * torch.finfo(dtype).eps)  # float32 sums in another order are off by a unit or two
    assert relative_error(run(packed_expert_ffn, packed_of(rounded)), truth_TD) <= allowed


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_expert(gated, bias):
    problem = make_problem(50, 64, 96, gated=gated, bias=bias, activation="silu")
    truth_TD = run(oracle.expert_ffn, problem)
    packed = packed_of(problem.to(torch.float32))
    assert relative_error(run(packed_expert_ffn, packed), truth_TD) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_moves_every_number_once_and_unpacking_brings_it_back(dtype):
    matrices_ENK = torch.arange(2 * 64 * 96).view(2, 64, 96).to(torch.float32).to(dtype)
    packed = pack_matrices(matrices_ENK)
    assert packed.numel() == matrices_ENK.numel()
    assert packed.dtype == dtype
    assert torch.equal(unpack_matrices(packed), matrices_ENK)


def test_the_place_of_a_number_is_as_documented():
    panel = compiled.panel_width()
    matrices_ENK = torch.randn(2, 2 * panel, 64)
    floats = pack_matrices(matrices_ENK)
    words = pack_matrices(matrices_ENK.bfloat16()).view(2, 2, 32, panel, 2)
    for j in range(panel):
        assert torch.equal(floats[1, 1, :, j], matrices_ENK[1, panel + j])
        assert torch.equal(words[1, 1, :, j], matrices_ENK[1, panel + j].bfloat16().view(32, 2))


def test_compiled_without_graph_breaks():
    packed = packed_of(make_problem(20, 64, 96).to(torch.bfloat16))
    function = functools.partial(packed_expert_ffn, activation="gelu_tanh", gated=False)
    expected = function(*packed.arguments())
    assert torch.equal(torch.compile(function, fullgraph=True)(*packed.arguments()), expected)


def test_opcheck():
    packed = packed_of(make_problem(6, 64, 96, load="sentinels").to(torch.bfloat16))
    arguments = (*packed.arguments(), "gelu_tanh", False, False, False)
    torch.library.opcheck(torch.ops.moe_codegen.expert_ffn.default, arguments)


@pytest.mark.parametrize(
    ("matrices", "reason"),
    [
        (torch.empty(2, 64, 64, device="meta"), "packing is for the processor"),
        (torch.empty(2, 64, 64, dtype=torch.float64), "can be packed"),
        (torch.empty(2, 65, 64), "no multiple"),
    ],
)
def test_what_cannot_be_packed_is_said(matrices, reason):
    assert reason in why_not_packed(matrices)


def test_what_torch_multiplies_faster_stays_plain(monkeypatch):
    monkeypatch.setattr("moe_codegen_kernels.packed.torch_is_faster", lambda dtype: dtype == torch.bfloat16)
    assert "faster" in why_not_packed(torch.empty(2, 64, 64, dtype=torch.bfloat16))
    assert why_not_packed(torch.empty(2, 64, 64)) is None


def test_plain_weights_are_refused():
    problem = make_problem(6, 64, 96).to(torch.float32)
    with pytest.raises(ValueError, match="are not packed"):
        run(packed_expert_ffn, problem)
    with pytest.raises(ValueError, match="expected the same"):
        run(packed_expert_ffn, replace(packed_of(problem), hidden_TD=problem.hidden_TD.bfloat16()))


def test_weights_packed_for_another_processor_are_refused():
    packed = packed_of(make_problem(6, 64, 96).to(torch.float32))
    other = replace(packed, up=packed.up.view(5, 3, 64, 32) if compiled.panel_width() == 16 else packed.up[..., :16])
    with pytest.raises(ValueError, match="another processor"):
        run(packed_expert_ffn, other)
