"""What the attention benchmark measures: the issue's shapes, the kernel in all its launches, and the libraries."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from accelaes_export.plugins.sparse_query_attention.tiles import Tile
from accelaes_export.plugins.sparse_query_attention.torch_op import attention

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """One attention of a focus step.

    Attributes:
        batch, heads, kv_heads, head_dim: B, H, Hkv, hd.
        tokens, text, focus: N, M, n. Queries and fresh keys are n + M, cached keys N - n.
    """

    model: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    tokens: int
    text: int
    focus: int

    @property
    def queries(self) -> int:
        return self.focus + self.text

    @property
    def background(self) -> int:
        return self.tokens - self.focus

    @property
    def flops(self) -> int:
        """Of both products."""
        return 4 * self.batch * self.heads * self.queries * (self.tokens + self.text) * self.head_dim

    def tensors(
        self, device: torch.device, seed: int = 0, *, biased: bool = False, strided: bool = False
    ) -> tuple[Any, ...]:
        """q, k, v, k_bg, v_bg, the scale and, where it is `biased`, a bias that hides some keys of every batch row.

        `strided`: as projections leave them, views of [B, rows, H, hd].
        """
        draw = torch.Generator(device).manual_seed(seed)
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[self.dtype]

        def normal(heads: int, rows: int) -> torch.Tensor:
            shape = (self.batch, rows, heads, self.head_dim) if strided else (self.batch, heads, rows, self.head_dim)
            drawn = torch.randn(shape, generator=draw, device=device, dtype=torch.float32).to(kind)
            return drawn.transpose(1, 2) if strided else drawn

        fresh, old = (self.kv_heads, self.queries), (self.kv_heads, self.background)
        made = (
            normal(self.heads, self.queries), normal(*fresh), normal(*fresh), normal(*old), normal(*old),
            self.head_dim**-0.5,
        )  # fmt: skip
        if not biased:
            return made
        keys = self.queries + self.background
        shown = torch.rand(self.batch, 1, 1, keys, generator=draw, device=device) < 0.7
        shown[..., 0] = True
        bias = torch.where(shown, 0.0, -1e4).to(kind)
        return (*made, bias.expand(-1, -1, self.queries, -1))  # a row for every query, all of them one


FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
MODELS = {
    "SD3": {"batch": 2, "heads": 24, "kv_heads": 24, "head_dim": 64, "dtype": "fp16", "tokens": 4096, "text": 333},
    "FLUX": {"batch": 1, "heads": 24, "kv_heads": 24, "head_dim": 128, "dtype": "bf16", "tokens": 4096, "text": 512},
    "Lumina": {"batch": 2, "heads": 32, "kv_heads": 8, "head_dim": 72, "dtype": "bf16", "tokens": 4096, "text": 0},
}
TINY = {
    "tiny": {"batch": 1, "heads": 2, "kv_heads": 1, "head_dim": 40, "dtype": "fp16", "tokens": 48, "text": 5},
}


def shapes(models: dict[str, dict[str, Any]]) -> Iterator[Shape]:
    """Every model at every fraction of focus tokens."""
    for name, fields in models.items():
        for fraction in FRACTIONS:
            yield Shape(model=name, focus=round(fraction * fields["tokens"]), **fields)


def reference(tensors: tuple[Any, ...]) -> torch.Tensor:
    """Attention over merged keys in float64, one head at a time: a whole one would not fit."""
    q, k, v, k_bg, v_bg, scale, *bias = tensors
    keys, values, group = torch.cat([k, k_bg], 2), torch.cat([v, v_bg], 2), q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = q[row, head].double() @ keys[row, head // group].double().T * scale
            if bias:
                scores = scores + bias[0][row, 0].double()
            out[row, head] = torch.softmax(scores, -1) @ values[row, head // group].double()
    return out


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def kernel(tensors: tuple[Any, ...], tile: Tile | None = None) -> Call:
    """The kernel on two segments."""
    return lambda: attention(*tensors, tile=tile)


def libraries(tensors: tuple[Any, ...]) -> dict[str, tuple[Call, Call]]:
    """Every library that takes these tensors: on keys merged beforehand, and with the concatenation it needs.

    torch's backends by name; FlashAttention 3 or 4 where it is installed.
    """
    q, k, v, k_bg, v_bg, scale = tensors
    found = {}
    for name, attend in {**_torch_backends(), **_flash_attention()}.items():
        merged = torch.cat([k, k_bg], 2), torch.cat([v, v_bg], 2)

        def alone(attend: Any = attend, merged: Any = merged) -> torch.Tensor:
            return attend(q, *merged, scale)

        def with_concat(attend: Any = attend) -> torch.Tensor:
            return attend(q, torch.cat([k, k_bg], 2), torch.cat([v, v_bg], 2), scale)

        try:
            alone()
        except (RuntimeError, AssertionError, ValueError, TypeError):
            continue  # not for this head size, dtype or GPU
        found[name] = (alone, with_concat)
    return found


def _torch_backends() -> dict[str, Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def through(backend: SDPBackend) -> Any:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
            with sdpa_kernel(backend):
                grouped = q.shape[1] != k.shape[1]
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)

        return attend

    kinds = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    return {f"torch {name}": through(getattr(SDPBackend, kind)) for name, kind in kinds.items()}


def _flash_attention() -> dict[str, Any]:
    """FlashAttention takes [B, rows, H, hd]; its transposition is a view, so it costs nothing here."""

    def through(module: str, name: str) -> Any:
        function = getattr(importlib.import_module(module), name)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
            out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=scale)
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return attend

    wanted = {"FlashAttention-3": ("flash_attn_interface", "flash_attn_func"),
              "FlashAttention-4": ("flash_attn.cute", "flash_attn_func")}  # fmt: skip
    found = {}
    for label, (module, name) in wanted.items():
        try:
            if importlib.util.find_spec(module) is not None:
                found[label] = through(module, name)
        except (ImportError, AttributeError):
            continue
    return found


def microseconds(call: Call, device: torch.device) -> float:
    """Median time of a call; on GPUs with a cold L2 cache, as between the other kernels of a step."""
    if device.type == "cuda":
        return _on_gpu(call, device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


_CALLS = 10
_FLUSHED_BYTES = 2**28  # beyond any GPU's L2


def _on_gpu(call: Call, device: torch.device) -> float:
    """From CUDA graphs, as engines run: a small kernel takes less time than Python takes to launch it.

    One graph clears the cache and calls, by turns; another clears it as often. The difference is the calls'.
    """
    dirt = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS):
                dirt.zero_()
                work()
        return graph

    call()  # the first one compiles, which a capture doesn't allow
    torch.cuda.synchronize(device)
    both, cleared = captured(call), captured(lambda: None)
    spent = []
    for _ in range(9):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        marks[0].record()
        both.replay()
        marks[1].record()
        cleared.replay()
        marks[2].record()
        torch.cuda.synchronize(device)
        spent.append(marks[0].elapsed_time(marks[1]) - marks[1].elapsed_time(marks[2]))
    return max(1000 * statistics.median(spent) / _CALLS, 0.01)
