"""The launchers' own behaviour: how much they launch, when they compile again, and that they never ask the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from triton.runtime.jit import JITFunction

from benchmarks.ahead_of_time import compile_layer, compiling_for, gpu_without_device
from benchmarks.shapes import SHAPES, LayerShape
from moe_codegen_kernels.gpu import layer, routing

SMALL = LayerShape("small", 128, 256, 4, 2, "gelu_tanh", gated=False, bias=True)
FORWARD = ["count", "scan", "place", "schedule", "gather", "up", "linear", "combine"]
BACKWARD = [
    "schedule", "gather", "gather_gradient", "down_gradient", "weight_gradient", "sum_partials", "sum_partials",
    "ragged_k", "ragged_k", "linear", "combine",
]  # fmt: skip


def _names(recorder):
    return [launch.name.removesuffix("_kernel") for launch in recorder.launches]


def test_a_layer_is_this_many_launches():
    assert _names(compile_layer("sm_90", SMALL, 4096, torch.bfloat16, trains=True)) == FORWARD + BACKWARD


def test_the_pointer_path_gathers_as_it_loads():
    names = _names(compile_layer("sm_80", SMALL, 4096, torch.bfloat16, trains=False))
    assert names == [name for name in FORWARD if name != "gather"]


@pytest.mark.parametrize("tokens", [1, 64])
def test_decode_is_three_launches(tokens):
    names = _names(compile_layer("sm_90", SMALL, tokens, torch.bfloat16, trains=False))
    assert names == ["decode_up", "decode_down", "decode_combine"]


def test_another_batch_size_compiles_nothing_anew():
    sizes = (4096, 4097, 5000, 6001, 7777, 8192, 16384)
    kernels = [set(compile_layer("sm_90", SMALL, tokens, torch.bfloat16, trains=True).kernels) for tokens in sizes]
    assert all(later == kernels[0] for later in kernels[1:])


class _Strict(TorchDispatchMode):
    """Raises where a value would have to reach the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::item"):
            raise RuntimeError(f"{name} waits for the device")
        result = operation(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if isinstance(result, torch.Tensor) and any(x.device != result.device for x in tensors):
            raise RuntimeError(f"{name} copies between devices")
        return result


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors on a device that is neither cpu nor real, whose values nobody can know; launches do nothing."""
    if torch._C._get_privateuse1_backend_name() != "fakegpu":
        _setup_privateuseone_for_python_backend("fakegpu")
    launches = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *a, grid, warmup, **k: launches.append(self.__name__))
    with FakeTensorMode(), _Strict():
        yield launches


@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
@pytest.mark.parametrize("tokens", [8, 4096])
def test_no_host_synchronisation(fake_gpu, architecture, tokens):
    gpu = gpu_without_device(architecture)
    hidden_TD = torch.empty(tokens, SMALL.model, dtype=torch.bfloat16, device="fakegpu")
    logits_TE = torch.empty(tokens, SMALL.experts, device="fakegpu")
    weights_TK, ids_TK = routing.route(logits_TE, SMALL.top_k, True)
    weights = SMALL.weights(torch.bfloat16, "fakegpu")
    kind = (SMALL.activation, SMALL.gated)
    layer.expert_ffn(hidden_TD, ids_TK, weights_TK, *weights, *kind, False, False, gpu)
    _, *kept = layer.expert_ffn(hidden_TD, ids_TK, weights_TK, *weights, *kind, True, True, gpu)
    layer.expert_ffn_backward(hidden_TD, hidden_TD, weights_TK, *weights, *kept, *kind, [True] * 6, gpu)
    assert "ragged_k_kernel" in fake_gpu


@pytest.mark.parametrize("ask", [lambda x: x.item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: int(x)])
def test_a_synchronisation_is_seen(fake_gpu, ask):
    with pytest.raises(
        Exception, match=r"waits for the device|copies between devices|data.dependent|Data.dependent|item"
    ):
        ask(torch.empty(1, device="fakegpu"))


@pytest.mark.parametrize("name", SHAPES)
def test_every_measured_shape_compiles(name):
    with compiling_for("sm_90"):
        names = _names(compile_layer("sm_90", SHAPES[name], 8192, torch.bfloat16, trains=False))
    assert names == FORWARD
