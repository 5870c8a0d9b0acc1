"""Policies: which step computes what. Plans, selectors, extrapolation and guidance, as pure functions of tensors.

Importing this package loads no torch, so a plan can be made and printed anywhere; the modules that hold tensor
functions (history, selection, guidance, clip) are imported by name where they are used.
"""

from __future__ import annotations

from accelaes_export.policies.accelaes import AccelAes
from accelaes_export.policies.base import Extrapolation, Policy, Selector, SpatialGuidance
from accelaes_export.policies.dense import Dense
from accelaes_export.policies.plan import Plan, Step, StepKind, bucket_letter
from accelaes_export.policies.registry import named, names, options_of
from accelaes_export.policies.stepcache import StepCache

__all__ = [
    "AccelAes",
    "Dense",
    "Extrapolation",
    "Plan",
    "Policy",
    "Selector",
    "SpatialGuidance",
    "Step",
    "StepCache",
    "StepKind",
    "bucket_letter",
    "named",
    "names",
    "options_of",
]
