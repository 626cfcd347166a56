"""What the programs of a launch do to memory, which a right result does not show: the interpreter runs them one after
another, where a GPU runs them side by side, and reads past a tensor's end, where a GPU may fault."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder
from triton.tools.tensor_descriptor import TensorDescriptor

from moe_codegen_kernels import quantise_weight
from moe_codegen_kernels.gpu import layer, parts, routing
from moe_codegen_kernels.quantised_weights import Quantised
from tests.kernels.interpreter.gpu_path import GPU, expert_ffn_on_gpu_path, use_tiles
from tests.kernels.problems import make_problem, outputs_and_gradients

NOBODY, SEVERAL = -1, -2


class _Region:
    """The elements of one tensor, and which program of the launch wrote and read each."""

    def __init__(self, tensor):
        self.start, self.size = tensor.data_ptr(), tensor.element_size()
        span = 1 + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.writer, self.reader = np.full((2, span), NOBODY)

    def holds(self, pointers):
        return (pointers >= self.start) & (pointers < self.start + self.size * len(self.writer))

    def touch(self, pointers, program, writes):
        """Whether another program wrote there, or read what is now written."""
        places = (pointers - self.start) // self.size
        writer, reader = self.writer[places], self.reader[places]
        if writes:
            self.writer[places] = program
        else:
            self.reader[places] = np.where((reader == NOBODY) | (reader == program), program, SEVERAL)
        others = (writer, reader) if writes else (writer,)
        return any(((other != NOBODY) & (other != program)).any() for other in others)


class _Watch:
    def __init__(self):
        self.faults, self.kernels, self.regions = set(), set(), []

    def begin(self, kernel, arguments):
        self.kernel, self.regions = kernel, []
        self.kernels.add(kernel)
        tensors = [x.base if isinstance(x, TensorDescriptor) else x for x in arguments]
        for tensor in {x.data_ptr(): x for x in tensors if isinstance(x, torch.Tensor) and x.numel() > 0}.values():
            self.regions.append(_Region(tensor))

    def access(self, pointers, mask, writes):
        pointers = pointers[mask].astype(np.int64)
        verb = "writes" if writes else "reads"
        for region in self.regions:
            is_here = region.holds(pointers)
            if is_here.any() and region.touch(pointers[is_here], self.program, writes):
                self.faults.add(f"{self.kernel} {verb} what another program touches")
            pointers = pointers[~is_here]
        if len(pointers):
            self.faults.add(f"{self.kernel} {verb} outside of its tensors")


@pytest.fixture
def watch(monkeypatch):
    """Follows every load and store of every launch."""
    watch = _Watch()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    place, launch = InterpreterBuilder.set_grid_idx, GridExecutor.__call__

    def watched_load(self, pointers, mask, *rest, **options):
        watch.access(pointers.data, mask.data, writes=False)
        return load(self, pointers, mask, *rest, **options)

    def watched_store(self, pointers, value, mask, *rest):
        watch.access(pointers.data, mask.data, writes=True)
        return store(self, pointers, value, mask, *rest)

    def watched_place(self, x, y, z):
        watch.program = x + 10**4 * y + 10**8 * z
        place(self, x, y, z)

    def watched_launch(self, *arguments, **options):
        watch.begin(self.fn.__name__.removesuffix("_kernel"), [*arguments, *options.values()])
        launch(self, *arguments, **options)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", watched_place)
    monkeypatch.setattr(GridExecutor, "__call__", watched_launch)
    return watch


@triton.jit
def move_kernel(x_ptr, DISTANCE: tl.constexpr, STEP: tl.constexpr):
    """Each program reads its element, or one some distance away, and writes its own, or the first."""
    program = tl.program_id(0)
    tl.store(x_ptr + program * STEP, tl.load(x_ptr + program + DISTANCE))


@pytest.mark.parametrize(
    ("distance", "step", "faults"),
    [
        (0, 1, set()),
        (0, 0, {"move writes what another program touches"}),
        (1, 1, {"move writes what another program touches", "move reads outside of its tensors"}),
        (-1, 1, {"move reads what another program touches", "move reads outside of its tensors"}),
        (0, 2, {"move reads what another program touches", "move writes outside of its tensors"}),
    ],
)
def test_planted_faults_are_seen(watch, distance, step, faults):
    memory = torch.zeros(20)
    move_kernel[(4,)](memory[8:12], DISTANCE=distance, STEP=step)
    assert watch.faults == faults


@pytest.mark.parametrize(
    ("path", "gated", "model", "hidden"),  # 24 and 40 leave edges, 32 and 64 none
    [("pointer", True, 24, 40), ("pointer", False, 32, 64), ("tma", False, 24, 40), ("tma", True, 32, 64)],
)
def test_a_layer_forward_and_backward(monkeypatch, watch, path, gated, model, hidden):
    use_tiles(monkeypatch, path)
    problem = make_problem(model=model, hidden=hidden, gated=gated, load="sentinels")
    outputs_and_gradients(expert_ffn_on_gpu_path, problem.to(torch.float16))
    assert watch.kernels >= {"place", "schedule", "up", "linear", "combine", "gather_gradient", "down_gradient"}
    assert watch.kernels >= {"routing_weight_gradient", "sum_partials", "ragged_k"}
    assert not watch.faults


@pytest.mark.parametrize("experts", [4, 9])  # fewer and more than routed rows
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_decode(watch, bits, experts):
    problem = make_problem(3, 96, 160, experts, load="sentinels", gated=True).to(torch.float16)
    stored = problem.experts()
    if bits < 16:
        up, down = (Quantised(*quantise_weight(matrices, bits, 32)) for matrices in (stored.up, stored.down))
        layer.quantised_expert_ffn(*problem.routed(), stored._replace(up=up, down=down), GPU)
    else:
        layer.expert_ffn(*problem.routed(), stored, False, False, GPU)
    assert watch.kernels == {"decode_up", "decode_down", "decode_combine"}
    assert not watch.faults


@pytest.mark.parametrize("experts", [1, 199])
def test_routing_and_the_parts(monkeypatch, watch, experts):
    use_tiles(monkeypatch, "pointer")
    _, ids_TK = routing.route(torch.randn(100, experts + 1), 2, True)  # the last stands for no expert
    order_R, inverse_R, offsets_E = routing.routing_plan(ids_TK, experts)
    hidden_TD, weights_TK = torch.randn(100, 24), torch.rand(100, 2)
    rows_RD = parts.gather(hidden_TD, order_R, offsets_E, 2)
    parts.grouped_gemm(rows_RD, torch.randn(experts, 16, 24), None, offsets_E, GPU)
    parts.combine(rows_RD, weights_TK, inverse_R, offsets_E)
    parts.combine_backward(hidden_TD, rows_RD, weights_TK, order_R, offsets_E)
    assert watch.kernels >= {"route", "count", "scan", "place", "gather", "zero_unrouted", "combine_gradients"}
    assert not watch.faults
