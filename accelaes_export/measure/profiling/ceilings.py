"""What this device can do at best, measured in the same run: the yardstick for what a step achieves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.measure.profiling.report import Ceilings
from accelaes_export.measure.profiling.timing import Stopwatch, interleaved

if TYPE_CHECKING:
    import torch

_MATMUL_SIZES = {"cuda": (4096, 8192), "cpu": (512, 1024)}
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}
"""Well beyond the last cache, so that it is memory which is measured."""

_CALLS_A_VALUE = {"cuda": 8, "cpu": 1}


def measure_ceilings(device: torch.device, dtype: str, watch: Stopwatch, *, rounds: int = 20) -> Ceilings:
    """Matrix products of the best of a few sizes in `dtype`, and one large copy; of each the fastest round.

    On a GPU fp32 products run as torch is set to (TF32 or not), as the engine's own comparison would.
    """
    import torch

    kind = torch_dtype(dtype)
    sizes = _MATMUL_SIZES[device.type]
    factors = {size: torch.randn(size, size, device=device, dtype=torch.float32).to(kind) for size in sizes}
    products = {size: torch.empty_like(factor) for size, factor in factors.items()}
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def product(size: int) -> None:
        torch.mm(factors[size], factors[size], out=products[size])

    work = {f"matmul {size}": (lambda size=size: product(size)) for size in sizes}
    with torch.inference_mode():
        timings = interleaved(
            {**work, "copy": lambda: target.copy_(source)},
            watch,
            rounds=rounds,
            warmup=1,
            calls=_CALLS_A_VALUE[device.type],
        )
    rates = {size: 2 * size**3 / min(timings[f"matmul {size}"].rounds) for size in sizes}
    best = max(rates, key=lambda size: rates[size])
    return Ceilings(
        dtype=dtype,
        matmul_flops_per_second=rates[best],
        matmul_size=best,
        copy_bytes_per_second=2 * source.numel() / min(timings["copy"].rounds),
        copy_bytes=source.numel(),
    )
