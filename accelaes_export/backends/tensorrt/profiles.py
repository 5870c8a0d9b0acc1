"""Optimization profiles: one per bucket, so that every bucket's kernels are chosen for exactly its n and m."""

from __future__ import annotations

from dataclasses import dataclass

from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OptimizationProfile:
    """Bucket n and, for every input that varies, its smallest, typical and largest shape."""

    n: int
    ranges: dict[str, tuple[Shape, Shape, Shape]]


def profiles(contract: GraphContract) -> tuple[OptimizationProfile, ...]:
    """One profile per bucket in the contract's order, dense (n = N, m = 0) last.

    B runs from 1 to 2 * batch and is tuned for the largest, the guided step. n, m and M are fixed in a profile,
    and the affinity is made of all tokens or of none.
    Raises InputError for a contract whose text length varies: a profile a text length would multiply them.
    """
    if contract.dynamic_text:
        raise InputError("TensorRT engines have one text length; export the model with dynamic_text off.")
    varying = [spec for spec in contract.inputs if any(isinstance(d, str) for d in spec.shape)]
    found = []
    for n in contract.buckets:
        least, most = contract.sizes(n, 1, observed=False), contract.sizes(n)
        found.append(OptimizationProfile(n, {s.name: (s.sized(least), s.sized(most), s.sized(most)) for s in varying}))
    return tuple(found)
