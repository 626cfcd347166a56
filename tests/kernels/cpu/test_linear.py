"""`linear` against a float64 product, where its kernel runs and where torch does."""

import sys

import pytest
import torch
from torch.nn import functional as F

from moe_codegen_kernels import linear
from moe_codegen_kernels.cpu import compiled
from tests.kernels.problems import relative_error

linear_module = sys.modules[linear.__module__]  # the package's name for it is the function's
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}  # of a result rounded once


@pytest.fixture
def products(monkeypatch):
    """How often the compiled kernel has run."""
    calls, real = [], compiled.grouped_gemm
    monkeypatch.setattr(compiled, "grouped_gemm", lambda *arguments: calls.append(1) or real(*arguments))
    monkeypatch.setattr(compiled, "torch_is_native", lambda dtype: False)
    return calls


def make(dtype, *shape, features=(64, 160), bias=True):
    x, weight = torch.randn(*shape, features[0]).to(dtype), torch.randn(features[1], features[0]).to(dtype)
    return x, weight, torch.randn(features[1]).to(dtype) if bias else None


def check(x, weight, bias):
    truth = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    out = linear(x, weight, bias)
    assert (out.shape, out.dtype) == (truth.shape, x.dtype)
    assert relative_error(out, truth) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 64), (0,)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_is_the_product_in_every_dtype_and_shape(dtype, shape, bias, cpu_path, products):
    check(*make(dtype, *shape, bias=bias))
    assert len(products) == (cpu_path != "torch")


def test_features_that_are_no_whole_panels_run_through_torch(products):
    check(*make(torch.bfloat16, 3, features=(24, 9)))
    assert not products


def test_many_rows_are_left_to_torch_where_it_has_a_fast_product(products, monkeypatch):
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(linear_module, "has_fast_product", lambda asked, fast=dtype: asked == fast)
        for each in (torch.float32, torch.bfloat16):
            products.clear()
            check(*make(each, 65))
            assert len(products) == (each != dtype and compiled.panel_width() > 0)


def test_gradients_autocast_and_float64_are_left_to_torch(products):
    x, weight, bias = make(torch.bfloat16, 3)
    linear(x, weight.clone().requires_grad_(), bias).sum().backward()
    assert torch.equal(linear(x.double(), weight.double(), None), F.linear(x.double(), weight.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x.float(), weight, bias).dtype == torch.bfloat16
    assert not products
    with torch.no_grad():
        linear(x, weight.requires_grad_(), bias)
    assert products or not compiled.panel_width()


def test_compiled_without_graph_breaks():
    arguments = make(torch.bfloat16, 2, 5)
    assert torch.equal(torch.compile(linear, fullgraph=True, backend="aot_eager")(*arguments), linear(*arguments))


def test_opcheck():
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.moe_codegen.linear.default, make(torch.bfloat16, 2, 5), test_utils=utils)
