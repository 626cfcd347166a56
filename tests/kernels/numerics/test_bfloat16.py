"""Canaries: the repaired interpreter rounds, widens and multiplies bfloat16 as torch does."""

import torch
import triton
import triton.language as tl


@triton.jit
def _product_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a, b = tl.load(a_ptr + i * N + j), tl.load(b_ptr + i * N + j, mask=i < N, other=0.0)
    tl.store(out_ptr + i * N + j, tl.dot(a, b) + a.to(tl.float32))


def test_products_and_rounding_are_torchs():
    a, b = (torch.randn(32, 32).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    _product_kernel[(1,)](a, b, out, N=32)
    expected = (a.float() @ b.float() + a.float()).bfloat16()
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=1e-5)
    assert (out == expected).float().mean() > 0.98  # a sum's order may tip a rounding; truncation would tip half


def test_nan_stays_nan():
    a = torch.full((16, 16), float("nan"), dtype=torch.bfloat16)
    out = torch.zeros_like(a)
    _product_kernel[(1,)](a, a, out, N=16)
    assert out.isnan().all()
