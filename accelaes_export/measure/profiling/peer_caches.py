"""Other people's step caches on a diffusers transformer: how each is switched on, and what it is asked to do.

Every one of them skips most of a forward at some steps. To compare them at equal work they are set so that the whole
network runs at as many steps as in a given plan; `knob` is the one setting that is searched for it (`peer_search.py`).
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accelaes_export.measure.profiling.peer_models import blocks_of
from accelaes_export.policies.plan import Plan

_ATTENTION = r"[^.]*(blocks|layers)\.\d+\.attn\d*"
"""Attention modules of blocks; by itself TaylorSeer finds those of some families only."""


@dataclass(frozen=True)
class Wanted:
    """The computed steps to be matched, read from a plan of dense steps and skips.

    Attributes:
        computed: T booleans.
        first_skip: i of the first skipped step.
        interval: steps from one computed step to the next, at most.
        last_computed: i of the first step behind the last skip.
    """

    computed: tuple[bool, ...]
    first_skip: int
    interval: int
    last_computed: int

    @classmethod
    def of(cls, plan: Plan) -> Wanted:
        computed = tuple(step.computed for step in plan)
        skipped = [i for i, now in enumerate(computed) if not now]
        runs = re.findall("0+", "".join("01"[now] for now in computed))
        return cls(
            computed=computed,
            first_skip=skipped[0] if skipped else len(computed),
            interval=1 + max(map(len, runs), default=0),
            last_computed=1 + skipped[-1] if skipped else len(computed),
        )

    @property
    def count(self) -> int:
        return sum(self.computed)


class StepCachePeer(ABC):
    """One such cache. `knob` lies between the ends of `knobs`; a larger one means fewer full computes.

    Attributes:
        name: in reports.
        package: whose version is recorded, and which pip installs.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "diffusers"

    def prepare(self, run: Callable[[Any], object], model: Callable[[], Any], wanted: Wanted) -> None:
        """Measure what the cache needs to know of the model; `model()` is a fresh one, `run(model)` a whole denoise."""
        return

    @abstractmethod
    def knobs(self, wanted: Wanted) -> tuple[float, float]:
        """Least and largest sensible knob; equal where there is nothing to search."""

    def guess(self, wanted: Wanted) -> float | None:
        """The knob that should do, or None."""
        return None

    def beneath(self, model: Any) -> list[torch.nn.Module]:
        """The largest modules below its hooks, which can be compiled: the hooks decide on the host."""
        return blocks_of(model)

    def tail(self, model: Any) -> torch.nn.Module:
        """The module beneath its hooks that runs exactly when the whole network does: the last block."""
        return blocks_of(model)[-1]

    @abstractmethod
    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        """Plain data for the report, and what `enable` takes."""

    @abstractmethod
    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        """Switch it on. `separate`: whether a step has a call for each half of a guidance pair."""

    def begin(self, model: Any, steps: int) -> None:
        """Forget the last run."""
        from diffusers.hooks.hooks import HookRegistry

        HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks(recurse=True)

    def context(self, model: Any, branch: str) -> Any:
        """What a pipeline wraps its calls in."""
        from diffusers.models.cache_utils import CacheMixin

        # A function of any model, though not every family's class has it.
        return CacheMixin.cache_context(model, branch)


class FirstBlockCache(StepCachePeer):
    """Computes the first block; skips the others while its residual changes by less than a threshold."""

    name = "FirstBlockCache"

    def knobs(self, wanted: Wanted) -> tuple[float, float]:
        return 1e-4, 4.0

    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        return {"threshold": knob}

    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache

        apply_first_block_cache(model, FirstBlockCacheConfig(**settings))


class MagCache(StepCachePeer):
    """Skips while the residual's magnitude, known from a calibration run, has changed by less than a threshold."""

    name = "MagCache"

    def __init__(self) -> None:
        self._ratios: list[float] = []

    def prepare(self, run: Callable[[Any], object], model: Callable[[], Any], wanted: Wanted) -> None:
        from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache

        calibrated = model()
        apply_mag_cache(calibrated, MagCacheConfig(calibrate=True, num_inference_steps=len(wanted.computed)))
        with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints what is to be handed back to it
            run(calibrated)
        self._ratios = ast.literal_eval(said.getvalue()[said.getvalue().index(":\n") + 2 :].strip().splitlines()[0])

    def knobs(self, wanted: Wanted) -> tuple[float, float]:
        return 1e-5, 10.0

    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        steps = len(wanted.computed)
        return {
            "threshold": knob,
            "max_skip_steps": wanted.interval - 1,
            "retention_ratio": wanted.first_skip / steps,
            "num_inference_steps": steps,
            "mag_ratios": self._ratios,
        }

    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache

        apply_mag_cache(model, MagCacheConfig(**settings))


class TaylorSeer(StepCachePeer):
    """Predicts the outputs of attention modules at each n-th step; feed-forward parts still run."""

    name = "TaylorSeer"

    def knobs(self, wanted: Wanted) -> tuple[float, float]:
        return wanted.first_skip, len(wanted.computed)

    def guess(self, wanted: Wanted) -> float | None:
        return wanted.last_computed

    def beneath(self, model: Any) -> list[torch.nn.Module]:
        return [part for block in blocks_of(model) for part in block.children() if list(part.parameters())]

    def tail(self, model: Any) -> torch.nn.Module:
        return next(part for name, part in blocks_of(model)[-1].named_children() if name.startswith("attn"))

    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        return {
            "cache_interval": wanted.interval,
            "disable_cache_before_step": wanted.first_skip,
            "disable_cache_after_step": round(knob),
            "max_order": 1,
            "cache_identifiers": [_ATTENTION],
        }

    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache

        dtype = next(model.parameters()).dtype
        apply_taylorseer_cache(model, TaylorSeerCacheConfig(**settings, taylor_factors_dtype=dtype))


class TaylorSeerLite(TaylorSeer):
    """Predicts the network's output alone and skips all blocks."""

    name = "TaylorSeer lite"

    def beneath(self, model: Any) -> list[torch.nn.Module]:
        return blocks_of(model)

    def tail(self, model: Any) -> torch.nn.Module:
        return blocks_of(model)[-1]

    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        return {**super().settings(wanted, knob), "cache_identifiers": None, "use_lite_mode": True}

    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        if "proj_out" not in dict(model.named_children()):
            raise ValueError("its output layer isn't called proj_out, which lite mode looks for")
        super().enable(model, settings, separate=separate)


class CacheDit(StepCachePeer):
    """cache-dit's DBCache: computes the first block, adds the others' cached residual; steps are given by a mask."""

    name = "cache-dit"
    package = "cache-dit"

    def knobs(self, wanted: Wanted) -> tuple[float, float]:
        return 0.0, 0.0

    def settings(self, wanted: Wanted, knob: float) -> dict[str, Any]:
        return {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "max_warmup_steps": 0,
            "num_inference_steps": len(wanted.computed),
            "steps_computation_mask": [int(now) for now in wanted.computed],
            "steps_computation_policy": "static",
        }

    def enable(self, model: Any, settings: dict[str, Any], *, separate: bool) -> None:
        import cache_dit

        config = cache_dit.DBCacheConfig(**settings, enable_separate_cfg=separate)
        try:
            cache_dit.enable_cache(model, cache_config=config)
        except ValueError:  # known to it by its pipeline alone, such as SD3's
            backbone = cache_dit.BlockAdapter(
                transformer=model,
                blocks=model.transformer_blocks,
                forward_pattern=cache_dit.ForwardPattern.Pattern_1,
            )
            cache_dit.enable_cache(backbone, cache_config=config)

    def begin(self, model: Any, steps: int) -> None:
        import cache_dit

        # Left alone it counts one call too few between two runs, and the mask slips.
        cache_dit.refresh_context(model, num_inference_steps=steps)

    def context(self, model: Any, branch: str) -> Any:
        return contextlib.nullcontext()


DIFFUSERS_CACHES: tuple[type[StepCachePeer], ...] = (FirstBlockCache, MagCache, TaylorSeer, TaylorSeerLite)
