"""Which attention an engine gets: its format's own, or ours, `accelaes::SparseQueryAttention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from accelaes_export.backends import names_with
from accelaes_export.backends.base import Backend
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import InputError
from accelaes_export.plugins.sparse_query_attention.measured import Measurement, faster
from accelaes_export.plugins.sparse_query_attention.tiles import ARCHITECTURES, HEAD_DIMS

Asked = Literal["auto", "plugin", "native"]
Attention = Literal["plugin", "native"]

_ON_THIS_MACHINE = ("native", "sm80+")  # targets of TensorRT that name no architecture


def choose_attention(
    asked: Asked,
    backend: Backend,
    targets: tuple[str, ...],
    contract: GraphContract,
    head_dims: Sequence[int],
    measured: Sequence[Measurement] | None = None,
) -> Attention:
    """What `asked` comes to for one build.

    "auto" is the plugin where its kernel was measured faster than the best library, over the engine's buckets, on
    every target; it is "native" wherever that isn't known.

    Args:
        head_dims: hd of the model's attentions.
        measured: measurements; those installed with the plugin if None.

    Raises InputError where the plugin was asked for and can't be.
    """
    if asked == "native":
        return "native"
    targets = backend.architectures(targets)
    problem = _why_no_plugin(backend, targets, contract.dtype, head_dims)
    if asked == "plugin":
        if problem:
            raise InputError(f"The attention plugin {problem}; build with --attention native.")
        return "plugin"
    known = not problem and not set(targets) & set(_ON_THIS_MACHINE)
    wins = known and all(
        faster(target, contract.dtype, head_dim, contract.tokens, contract.buckets, measured)
        for target in targets
        for head_dim in head_dims
    )
    return "plugin" if wins else "native"


def _why_no_plugin(backend: Backend, targets: Sequence[str], dtype: str, head_dims: Sequence[int]) -> str:
    if not backend.takes_plugin:
        return f"is for {', '.join(names_with('takes_plugin'))}, and {backend.name} has its own attention"
    if dtype not in ("fp16", "bf16"):
        return f"takes fp16 and bf16, not {dtype}"
    unknown = [target for target in targets if target not in (*ARCHITECTURES, *_ON_THIS_MACHINE)]
    if unknown:
        return f"has kernels for {', '.join(ARCHITECTURES)}, not for {', '.join(unknown)}"
    refused = [head_dim for head_dim in head_dims if head_dim not in HEAD_DIMS]
    if refused or not head_dims:
        return f"takes head sizes from 32 to 256 in steps of 8, not {', '.join(map(str, refused)) or 'none'}"
    return ""
