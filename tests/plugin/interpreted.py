"""Triton's interpreter, mended in two places, so that the kernel itself runs here on CPU tensors.

Import this before anything imports the kernel. Triton decides when it is imported whether kernels are interpreted;
tests/conftest.py sets TRITON_INTERPRET for the whole suite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton isn't installed")

import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor
_create_dot = interpreter.InterpreterBuilder.create_dot


def _scalars_are_indices(tensor: Any, scope: Any) -> None:
    """Scalars are arrays of one element there, which NumPy no longer takes for numbers."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _float32(operand: Any) -> Any:
    bits = operand.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _products_of_bf16(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """bf16 is kept there as its bits, and products are made of those as if they were integers."""
    if a.dtype.scalar == tl.bfloat16:
        a, b = _float32(a), _float32(b)
    return _create_dot(self, a, b, d, *options)


interpreter._patch_lang_tensor = _scalars_are_indices
interpreter.InterpreterBuilder.create_dot = _products_of_bf16
