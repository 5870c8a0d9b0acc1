"""The dtypes of the contract in torch's terms."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int64": "int64"}


def torch_dtype(name: str) -> torch.dtype:
    """ "fp16" to torch.float16, and so on; KeyError for a name the contract doesn't have."""
    import torch

    dtype = getattr(torch, _NAMES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_argument(name: str) -> dict[str, torch.dtype]:
    """The argument of diffusers' `from_pretrained` that loads in a dtype; it was renamed in release 0.42."""
    major, minor = (int(part) for part in metadata.version("diffusers").split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": torch_dtype(name)}
