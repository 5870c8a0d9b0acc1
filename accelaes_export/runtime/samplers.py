"""What is to be known of a pipeline's scheduler: how it moves latents, and whether it adds noise between steps.

Predictions can be carried on where the solver is deterministic alone. Whether it is, the scheduler is asked by what it
does: a copy of it, made of its configuration, takes a few steps twice on the same numbers with other random ones.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

_STEPS = 8  # some schedulers add noise in the middle of a run alone


def is_first_order(scheduler: Any) -> bool:
    """Whether a step takes the latest prediction alone."""
    return getattr(scheduler.config, "solver_order", 1) == 1 and getattr(scheduler, "order", 1) == 1


def moves_as_euler(scheduler: Any) -> bool:
    """Whether it moves latents by (difference of sigmas) x prediction, as flow matching's Euler does.

    Multistep DPM-Solver does at order 1 where the prediction is the flow.
    """
    name, config = type(scheduler).__name__, scheduler.config
    flow = getattr(config, "prediction_type", None) == "flow_prediction" and getattr(config, "use_flow_sigmas", False)
    return name == "FlowMatchEulerDiscreteScheduler" or (
        name == "DPMSolverMultistepScheduler" and flow and is_first_order(scheduler)
    )


def adds_noise(scheduler: Any, options: Mapping[str, Any] | None = None) -> bool:
    """Whether two runs of the scheduler on the same predictions differ.

    Args:
        scheduler: a pipeline's. Its state isn't touched, nor is torch's own generator.
        options: what the pipeline hands to every step, such as DDIM's eta.

    A scheduler that can't be tried out is taken to add noise: its results would be wrong without a word.
    """
    try:
        config = json.dumps(dict(scheduler.config), sort_keys=True)
    except (AttributeError, TypeError):  # it has none, or one with arrays in it
        return _tried(scheduler, options or {})
    kind: Any = type(scheduler)
    return _tried_before(kind, config, tuple(sorted((options or {}).items())))


@lru_cache(maxsize=64)  # takes as long as a step or two of a small model, and every run asks
def _tried_before(kind: Any, config: str, options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        scheduler = kind.from_config(json.loads(config))
    except Exception:  # as below
        return True
    return _tried(scheduler, dict(options))


def _tried(scheduler: Any, options: Mapping[str, Any]) -> bool:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for channels in (1, 2):  # some variances are learned, and predicted in channels of their own
            try:
                first, second = (_carried_on(scheduler, options, channels, seed) for seed in (1, 2))
            except Exception:  # whatever a foreign scheduler says of these numbers
                continue
            return not torch.equal(first, second)
    return True


def _carried_on(scheduler: Any, options: Mapping[str, Any], channels: int, seed: int) -> torch.Tensor:
    """[1, 4, 2, 2]: where a few steps lead."""
    torch.manual_seed(seed)
    probe = _fresh(scheduler)
    taken = inspect.signature(probe.step).parameters
    arguments = {name: value for name, value in options.items() if name in taken}
    if "generator" in taken:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    sample = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2)
    for timestep in probe.timesteps:
        scaled = probe.scale_model_input(sample, timestep) if hasattr(probe, "scale_model_input") else sample
        prediction = scaled.repeat(1, channels, 1, 1) * 0.5
        sample = probe.step(prediction, timestep, sample, return_dict=False, **arguments)[0]
    return sample


def _fresh(scheduler: Any) -> Any:
    """A scheduler of the same class and configuration with a schedule of its own, on the host."""
    probe = type(scheduler).from_config(scheduler.config) if hasattr(scheduler, "config") else copy.deepcopy(scheduler)
    shifted = "mu" in inspect.signature(probe.set_timesteps).parameters and probe.config.get("use_dynamic_shifting")
    probe.set_timesteps(_STEPS, **({"mu": 1.0} if shifted else {}))
    return probe
