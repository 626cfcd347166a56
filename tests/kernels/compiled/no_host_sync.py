"""The launchers on a device that does not exist, whose values nobody can know. Run by test_launches.py."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from triton.runtime.jit import JITFunction

from benchmarks.ahead_of_time import gpu_without_device
from benchmarks.shapes import LayerShape
from moe_codegen_kernels.gpu import layer, parts, routing
from moe_codegen_kernels.quantised_weights import Quantised
from moe_codegen_kernels.records import RoutingPlan

SMALL = LayerShape("small", 128, 256, 4, 2, "gelu_tanh", gated=False, bias=True)


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
    experts = SMALL.weights(torch.bfloat16, "fakegpu")
    layer.expert_ffn(hidden_TD, ids_TK, weights_TK, experts, False, False, gpu)
    stored = (torch.empty_like(matrices, dtype=torch.int8) for matrices in (experts.up, experts.down))
    up, down = (Quantised(x, x.new_empty(*x.shape[:2], 1, dtype=torch.bfloat16)) for x in stored)
    layer.quantised_expert_ffn(hidden_TD, ids_TK, weights_TK, experts._replace(up=up, down=down), gpu)
    _, h_RG, *plan = layer.expert_ffn(hidden_TD, ids_TK, weights_TK, experts, True, True, gpu)
    layer.expert_ffn_backward(hidden_TD, hidden_TD, weights_TK, experts, h_RG, RoutingPlan(*plan), [True] * 6, gpu)
    assert "ragged_k_kernel" in fake_gpu


def test_the_parts_do_not_synchronise(fake_gpu):
    gpu = gpu_without_device("sm_90")
    hidden_TD = torch.empty(512, SMALL.model, dtype=torch.bfloat16, device="fakegpu")
    weights_TK, ids_TK = routing.route(torch.empty(512, SMALL.experts, device="fakegpu"), SMALL.top_k, True)
    order_R, inverse_R, offsets_E = routing.routing_plan(ids_TK, SMALL.experts)
    x_RD = parts.gather(hidden_TD, order_R, offsets_E, SMALL.top_k)
    up, up_bias, *_ = SMALL.weights(torch.bfloat16, "fakegpu")
    h_RG = parts.grouped_gemm(x_RD, up, up_bias, offsets_E, gpu)
    parts.grouped_gemm_ragged_k(h_RG, x_RD, offsets_E, gpu)
    parts.combine(x_RD, weights_TK, inverse_R, offsets_E)
    parts.combine_backward(hidden_TD, x_RD, weights_TK, order_R, offsets_E)
    assert fake_gpu[-1] == "combine_gradients_kernel"


@pytest.mark.parametrize("ask", [lambda x: x.item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: int(x)])
def test_a_synchronisation_is_seen(fake_gpu, ask):
    with pytest.raises(
        Exception, match=r"waits for the device|copies between devices|data.dependent|Data.dependent|item"
    ):
        ask(torch.empty(1, device="fakegpu"))
