"""The emulator itself: what a GPU would do wrong it does wrong too, or names it."""

import re

import pytest
import torch
import triton
import triton.language as tl

from moe_codegen_kernels.gpu import OPTIONS
from tests.kernels.emulator.launch import emulating
from tests.kernels.emulator.memory import MemoryFault
from tests.kernels.emulator.ptx import UnknownInstruction, parse
from tests.kernels.gpu_path import expert_ffn_on_gpu_path, use_tiles
from tests.kernels.problems import check_against_oracle, make_problem


@triton.jit
def add_one_kernel(x_ptr, out_ptr, N, STEP: tl.constexpr, HINT: tl.constexpr, BLOCK: tl.constexpr):
    """out = x + 1, each program from its number times STEP on."""
    start = tl.program_id(0) * STEP
    if HINT:
        start = tl.multiple_of(start, 8)
    index_N = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + index_N, tl.load(x_ptr + index_N, mask=index_N < N) + 1, mask=index_N < N)


def _add_one(claimed, step=128, hint=False, read_from=0, write_from=None):
    """On 320 numbers; in place, from one of them on, where `write_from` is given."""
    x = torch.arange(320, dtype=torch.float32)
    out = torch.empty_like(x) if write_from is None else x[write_from:]
    with emulating("sm_80"):
        add_one_kernel[(3,)](x[read_from:], out, claimed, STEP=step, HINT=hint, BLOCK=128, num_warps=1, **OPTIONS)
    return x, out


def test_a_kernel_computes():
    x, out = _add_one(320)
    assert torch.equal(out, x + 1)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"claimed": 321}, "outside every tensor"),
        ({"claimed": 320, "step": 127}, "program 1 writes what another"),
        ({"claimed": 319, "read_from": 1, "write_from": 0}, "program 1 reads what another"),
        ({"claimed": 319, "write_from": 1}, "program 1 writes what another"),
        ({"claimed": 320, "step": 130, "hint": True}, "no multiple of"),
    ],
    ids=["one too many", "two write", "one reads what was written", "one writes what was read", "a false hint"],
)
def test_an_access_that_a_gpu_would_not_survive_is_named(arguments, fault):
    with pytest.raises(MemoryFault, match=fault):
        _add_one(**arguments)


def _only(kernel, pattern, replacement):
    def edit(text):
        if f".entry {kernel}" not in text:
            return text
        edited, count = re.subn(pattern, replacement, text)
        assert count, f"{kernel} holds no {pattern}"
        return edited

    return edit


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize(
    ("path", "edit"),
    [
        ("pointer", _only("up_kernel", r"cp\.async\.wait_group\s+\d+", "cp.async.wait_group 99")),
        ("pointer", _only("linear_kernel", r"(mma\.\S+ \{[^}]*\}, \{) (%r\d+), (%r\d+),", r"\1 \3, \2,")),
        ("tma", _only("linear_kernel", r"mbarrier\.try_wait[^;]*;", "setp.eq.u32 complete, 0, 0;")),
        ("tma", _only("ragged_k_kernel", r"bulk\.wait_group\S*\s+0", "bulk.wait_group 99")),
    ],
    ids=["no wait for words", "registers swapped", "no wait for boxes", "no wait for stores"],
)
def test_machine_code_that_is_wrong_in_one_place_fails(monkeypatch, path, edit):
    use_tiles(monkeypatch, path)
    with emulating("sm_90", edit), pytest.raises((AssertionError, MemoryFault)):
        check_against_oracle(expert_ffn_on_gpu_path, make_problem(load="sentinels"), torch.float16)


def test_what_it_does_not_know_it_refuses():
    with emulating("sm_80", lambda text: text.replace("add.f32", "tex.f32")), pytest.raises(UnknownInstruction):
        add_one_kernel[(1,)](torch.zeros(128), torch.zeros(128), 128, STEP=128, HINT=False, BLOCK=128, **OPTIONS)
    with pytest.raises(ValueError, match="no kernel"):
        parse(".version 9.0")
