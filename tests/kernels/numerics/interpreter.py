"""Triton's interpreter keeps bfloat16 as bit patterns, multiplies the patterns as numbers, and truncates when it
rounds. The kernels only load, store, widen, narrow and multiply bfloat16, so two repaired methods are enough.

Triton 3.6's cannot count to a scalar that numpy 2.4 holds as an array of one element; later ones can."""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from tests.kernels.bfloat16 import narrow, widen


def repair(monkeypatch) -> None:
    """Make the interpreter's casts and dots right for bfloat16, and its scalars numbers."""
    builder = interpreter.InterpreterBuilder
    patch_tensor = interpreter._patch_lang_tensor
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self, src, dst_type):
        pair = (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(widen(src.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(narrow(np.asarray(src.data)), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_dot(self, a, b, d, *options):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(widen(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, d, *options)

    def patch_lang_tensor(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)
    monkeypatch.setattr(builder, "cast_impl", cast_impl)
    monkeypatch.setattr(builder, "create_dot", create_dot)
