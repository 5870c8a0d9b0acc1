"""Metrics by name: the built-in ones, and others given as `module:attribute`.

One whose library or weights aren't there says what is missing. Nothing is downloaded here: weights are taken from
where the hub's client keeps them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from accelaes_export.errors import InputError, MissingComponentError, did_you_mean
from accelaes_export.measure.quality import distances, preferences
from accelaes_export.measure.quality.metrics import Metric, MetricAbsentError
from accelaes_export.measure.quality.report import AbsentMetric

if TYPE_CHECKING:
    import torch

BUILT_IN: dict[str, Callable[[torch.device], Metric]] = {**distances.METRICS, **preferences.METRICS}
"""What `load_metrics` knows by itself: a name, and what loads it onto a device."""


def check_names(names: Iterable[str]) -> None:
    """InputError for a name that is neither built in nor `module:attribute`, or one given twice. Imports nothing."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"Metric {name} is given twice; give it once.")
        seen.add(name)
        if name not in BUILT_IN and not _is_reference(name):
            raise InputError(
                f"There is no metric {name!r}; allowed are {', '.join(BUILT_IN)}, or module:attribute for one of "
                f"your own.{did_you_mean(name, BUILT_IN)}"
            )


def load_metrics(names: Sequence[str] | None, device: torch.device) -> tuple[list[Metric], list[AbsentMetric]]:
    """The metrics, ready to measure, and those that can't.

    Args:
        names: None: every built-in one whose library and weights are there, the others are returned as absent.
        device: where metrics with a network compute.

    Raises:
        InputError: for what `check_names` refuses, two metrics of one name, or an attribute that is no Metric.
        MissingComponentError: one that was asked for by name and isn't there.
    """
    check_names(names or ())
    metrics: list[Metric] = []
    absent: list[AbsentMetric] = []
    for name in BUILT_IN if names is None else names:
        if name not in BUILT_IN:
            metrics += _referenced(name)
            continue
        try:
            metrics.append(BUILT_IN[name](device))
        except MetricAbsentError as error:
            if names is not None:
                raise MissingComponentError(f"Metric {name}: {error.reason}; {error.remedy}.") from error
            absent.append(AbsentMetric(name=name, reason=error.reason, remedy=error.remedy))
    for metric in metrics:
        if [other.name for other in metrics].count(metric.name) > 1:
            raise InputError(f"Two metrics are named {metric.name}; give one of them, or another name.")
    return metrics, absent


def _is_reference(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _referenced(name: str) -> list[Metric]:
    """The Metric, or sequence of Metrics, that `module:attribute` names: a module the caller has and trusts."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InputError(
            f"Metric {name} can't be imported ({error}); name a module on Python's path, e.g. with PYTHONPATH=."
        ) from error
    except AttributeError as error:
        raise InputError(f"Metric {name}: module {module} has no {attribute}; name a Metric in it.") from error
    metrics = [found] if isinstance(found, Metric) else found
    if not isinstance(metrics, (list, tuple)) or not metrics or not all(isinstance(m, Metric) for m in metrics):
        raise InputError(
            f"Metric {name} is {type(found).__name__}; give a Metric of "
            "accelaes_export.measure.quality.metrics, or a list of them."
        )
    return list(metrics)
