"""Policies: which step computes what. Plans, selectors, extrapolation and guidance, as pure functions of tensors.

Importing this package loads no torch, so a plan can be made and printed anywhere; the modules that hold tensor
functions (history, selection, guidance, clip) are imported by name where they are used.
"""

from __future__ import annotations

from accelaes_export.policies.accelaes import AccelAes
from accelaes_export.policies.base import Extrapolation, Gate, ModelFacts, Policy, Selector, SpatialGuidance
from accelaes_export.policies.coefficients import Coefficients, TokenClass
from accelaes_export.policies.delta_dit import DeltaDiT
from accelaes_export.policies.dense import Dense, FewerSteps
from accelaes_export.policies.diffsparse import DiffSparse
from accelaes_export.policies.drift import Drift
from accelaes_export.policies.drift_plans import DriftSchedule, listed_budgets
from accelaes_export.policies.easycache import EasyCache
from accelaes_export.policies.layer_schedule import LayerSchedule
from accelaes_export.policies.plan import Plan, Step, StepKind, bucket_letter
from accelaes_export.policies.planned import PolicyWithCoefficients, PolicyWithDefaultPlan, PolicyWithPlan
from accelaes_export.policies.ras import RAS
from accelaes_export.policies.registry import from_name, help_of, named, names, options_of
from accelaes_export.policies.reuse import Fora, TaylorSeer
from accelaes_export.policies.stepcache import StepCache
from accelaes_export.policies.teacache import TeaCache

__all__ = [
    "RAS",
    "AccelAes",
    "Coefficients",
    "DeltaDiT",
    "Dense",
    "DiffSparse",
    "Drift",
    "DriftSchedule",
    "EasyCache",
    "Extrapolation",
    "FewerSteps",
    "Fora",
    "Gate",
    "LayerSchedule",
    "ModelFacts",
    "Plan",
    "Policy",
    "PolicyWithCoefficients",
    "PolicyWithDefaultPlan",
    "PolicyWithPlan",
    "Selector",
    "SpatialGuidance",
    "Step",
    "StepCache",
    "StepKind",
    "TaylorSeer",
    "TeaCache",
    "TokenClass",
    "bucket_letter",
    "from_name",
    "help_of",
    "listed_budgets",
    "named",
    "names",
    "options_of",
]
