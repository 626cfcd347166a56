"""A kernel that is wrong in one line must fail the check that the right one passes, or reach where it must not."""

import contextlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_codegen_kernels import quantise_weight
from moe_codegen_kernels.gpu import decode, layer, pointer, rows, tma
from moe_codegen_kernels.quantised_weights import Quantised
from tests.kernels.emulator.memory import MemoryFault
from tests.kernels.gpu_path import GPU, expert_ffn_on_gpu_path, use_tiles
from tests.kernels.problems import check_against_oracle, make_problem, oracle, relative_error

MUTATIONS = [
    (pointer, "is_row_M = row_M < end", "is_row_M = row_M < end + 1"),
    (pointer, "matrices_ptr + expert.to(tl.int64) * stride_e", "matrices_ptr + (expert ^ 1) * stride_e"),
    (pointer, "column_N, N, BLOCK_M), acc, mask=mask)", "column_N, N, BLOCK_M), acc * (n > 0), mask=mask)"),
    (pointer, "acc += bias_of(", "acc += 0.0 * bias_of("),
    (pointer, "h += bias_of(", "h += 0.0 * bias_of("),
    (pointer, "s = tl.load(s_ptr + row_M, mask=is_row_M, other=0.0)", "s = tl.load(s_ptr + row_M)"),
    (pointer, "n * BLOCK_N + part * EPILOGUE_COLUMNS", "n * BLOCK_N"),
    (pointer, "left_mask = is_row_K[None, :] if EVEN else is_row_K[None, :] &", "left_mask ="),
    (pointer, "a = tl.load(row_ptrs, mask=is_k_K[None, :], other=0.0)", "a = tl.load(row_ptrs)"),
    (tma, "to_ragged_indices(row, end - row, 0)", "to_ragged_indices(row, end - row + 1, 0)"),
    (tma, "matrices_desc.load([expert, n, k])", "matrices_desc.load([expert ^ 1, n, k])"),
    (tma, "end, 0, n * BLOCK_N, acc)", "end, 0, n * BLOCK_N, acc * (n > 0))"),
    (tma, "acc += bias_of(", "acc += 0.0 * bias_of("),
    (tma, "dA = tl.where(is_row_M[:, None], dA, 0.0)", "pass"),
    (tma, "n * BLOCK_N + part * EPILOGUE_COLUMNS", "n * BLOCK_N"),
    (tma, "to_ragged_indices(start, rows, row)", "to_ragged_indices(start, rows + 1, row)"),
    (rows, "column_N < tl.where(row < end, N, 0)", "column_N < N"),
    (rows, "sums_N = tl.sum(dO.to(tl.float32) * s_M[:, None], axis=0)", "sums_N = tl.sum(dO.to(tl.float32), axis=0)"),
    (rows, "tl.store(s_ptr + row_M, s_M, mask=is_row_M)", "tl.store(s_ptr + row_M, 1.0, mask=is_row_M)"),
    (rows, "total_R += tl.load(dots_ptr +", "total_R = tl.load(dots_ptr +"),
    (
        rows,
        "value_N *= tl.load(weights_ptr + token * TOP_K + choice)",
        "value_N *= tl.load(weights_ptr + token * TOP_K)",
    ),
]


def _mutated(module, right, wrong, folder):
    source = Path(module.__file__).read_text()
    assert right in source, f"{module.__name__} no longer holds the line to break: {right}"
    path = folder / "mutated.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutated", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize(("module", "right", "wrong"), MUTATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_the_check_sees(monkeypatch, tmp_path, module, right, wrong):
    use_tiles(monkeypatch, "pointer" if module is pointer else "tma")
    mutant = _mutated(module, right, wrong, tmp_path)
    if module is rows:
        monkeypatch.setattr(layer, "rows", mutant)
    else:
        monkeypatch.setitem(layer.GEMMS_OF, "pointer" if module is pointer else "tma", mutant)
    problem = make_problem(tokens=23, model=24, hidden=40, experts=4, load="sentinels")
    with pytest.raises((AssertionError, MemoryFault), match=r"relative error|of the launch|of its launch"):
        check_against_oracle(expert_ffn_on_gpu_path, problem, torch.float16)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("& (k_K < K // PACKED)[None, :]", "& (k_K < K // PACKED - 1)[None, :]"),
        ("(value_K < K)[:, None]", "(value_K < K - 1)[:, None]"),
        ("slot_T, BLOCK_T * TOP_K)) == tl.program_id(0)", "slot_T, BLOCK_T * TOP_K)) < tl.program_id(0)"),
        ("(part * T * TOP_K + slot) * N", "(part * T * TOP_K + token) * N"),
        ("tl.where(part == 0, tl.trans(bias", "tl.where(part >= 0, tl.trans(bias"),
        ("tl.min(tl.where(ids == expert", "tl.max(tl.where(ids == expert"),
        ("a *= value", "pass"),
    ],
)
def test_decode_mutations(tmp_path, right, wrong):
    problem = make_problem(tokens=3, experts=9, gated=True).to(torch.float16)
    _check_decode_sees(problem, problem.experts(), _mutated(decode, right, wrong, tmp_path))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("byte_K // 16 * 32", "byte_K // 32 * 64"),
        ("low if half == 0 else high", "high if half == 0 else low"),
        ("k // GROUP if J > 1 else", "0 if J > 1 else"),
        ("+ tl.arange(0, J)", "+ 0 * tl.arange(0, J)"),
        ("scales_ptr + tl.cast(N, tl.int64) * groups", "scales_ptr + tl.cast(N - 1, tl.int64) * groups"),
        ("& (group_J < groups)[None, :]", "& (group_J < groups - 1)[None, :]"),
        ("sums *= tl.load(scales_ptr + column_N", "sums *= tl.load(scales_ptr + 0 * column_N"),
    ],
)
def test_quantised_decode_mutations(tmp_path, right, wrong):
    problem = make_problem(tokens=2, model=160, hidden=32, experts=5, gated=True)
    up, down = (Quantised(*quantise_weight(matrices, 4, 32)) for matrices in (problem.up, problem.down))
    problem = replace(problem, up=up.to(torch.float64), down=down.to(torch.float64)).to(torch.float16)
    _check_decode_sees(problem, problem.experts()._replace(up=up, down=down), _mutated(decode, right, wrong, tmp_path))


def _check_decode_sees(problem, experts, mutant):
    truth_TD = oracle.expert_ffn(*problem.to(torch.float64).arguments(), activation="gelu_tanh", gated=True)
    assert relative_error(decode.expert_ffn(*problem.routed(), experts, GPU), truth_TD) < 1e-3
    with contextlib.suppress(MemoryFault):
        assert relative_error(mutant.expert_ffn(*problem.routed(), experts, GPU), truth_TD) > 1e-2
