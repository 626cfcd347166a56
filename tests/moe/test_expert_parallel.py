"""Experts on two ranks compute, and learn, what they do on one."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from moe_codegen.moe.expert_parallel import spread
from tests.modeling.mixture import IMPLEMENTATIONS
from tests.moe.test_experts import experts, problem
from tests.training.parallel import processes

WIDTH, COUNT, TOP_K = 8, 4, 2  # grouped_mm wants rows of 16 bytes or a multiple
KINDS = {"gated": dict(gated=True, bias=False), "biased": dict(activation="gelu_new", gated=False, bias=True)}
TOKENS = {"both have tokens": (7, 4), "one has none": (6, 0), "all for the first's experts": (3, 5)}


def inputs(case, rank):
    x, ids, weights = problem(TOKENS[case][rank], WIDTH, COUNT, TOP_K, seed=rank)
    return x, ids % 2 if case.startswith("all") else ids, weights


def outputs_and_gradients(made, x, ids, weights):
    x, weights = x.requires_grad_(), weights.requires_grad_()
    out = made(x, ids, weights)
    (out * torch.arange(1.0, WIDTH + 1)).sum().backward()
    return out.detach(), x.grad, weights.grad, {name: parameter.grad for name, parameter in made.named_parameters()}


def on_this_rank():
    mesh, results = init_device_mesh("cpu", (2,)), {}
    for kind, fields in KINDS.items():
        for implementation in IMPLEMENTATIONS:
            whole = experts(implementation, COUNT, WIDTH, 8, **fields)
            for case in TOKENS:
                shared = copy.deepcopy(whole)
                spread(shared, mesh)
                *mine, gradients = outputs_and_gradients(shared, *inputs(case, dist.get_rank()))
                gathered = {name: gradient.full_tensor() for name, gradient in gradients.items()}
                results[kind, implementation, case] = (*mine, gathered)
    return results


def assert_close(actual, expected):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * scale)


@pytest.fixture(scope="module")
def two_ranks():
    return processes.run(2, on_this_rank)


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_compute_what_one_does(two_ranks, kind, implementation, case):
    mean = {}
    for rank, results in enumerate(two_ranks):
        whole = experts("eager", COUNT, WIDTH, 8, **KINDS[kind])
        *expected, gradients = outputs_and_gradients(whole, *inputs(case, rank))
        *actual, shared = results[kind, implementation, case]
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other)
        mean = {name: mean.get(name, 0) + gradient / 2 for name, gradient in gradients.items()}
    for name, gradient in mean.items():
        assert_close(shared[name], gradient)
