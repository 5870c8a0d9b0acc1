"""From rows to figures: every policy over all prompts and seeds, and against dense picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.quality.metrics import MEAN_ERROR
from accelaes_export.measure.quality.report import DENSE, ImageRow, Interval, MetricAbout, PolicyQuality
from accelaes_export.measure.quality.request import EvaluationRequest
from accelaes_export.measure.quality.statistics import Statistic, Values, interval, mean, median, psnr_of_mean_error
from accelaes_export.policies import registry
from accelaes_export.policies.base import Policy

Rows = Mapping[tuple[str, int, int], ImageRow]


def summarise(
    rows: Rows, request: EvaluationRequest, manifest: Manifest, metrics: Sequence[MetricAbout]
) -> tuple[PolicyQuality, ...]:
    """Every policy's figures, dense first. `rows` has all pictures of the request."""
    return tuple(
        _Policy(rows, request, label).quality(policy, request.steps_of(policy, manifest), metrics)
        for label, policy in request.all_policies.items()
    )


class _Policy:
    """One policy's rows as arrays [prompts, seeds]."""

    def __init__(self, rows: Rows, request: EvaluationRequest, label: str) -> None:
        self._label = label
        self._own, self._dense = (
            [[rows[who, k, seed] for seed in request.seeds] for k in range(len(request.prompts))]
            for who in (label, DENSE)
        )

    def quality(self, policy: Policy, steps: int, metrics: Sequence[MetricAbout]) -> PolicyQuality:
        first, own = self._own[0][0], [row for line in self._own for row in line]
        reference = self._label == DENSE
        return PolicyQuality(
            label=self._label,
            name=policy.name,
            settings=registry.options_of(policy),
            steps=steps,
            plan=first.plan,
            kept=first.kept,
            plans=len({row.plan for row in own}),
            pictures=len(own),
            token_cost=self._figure(lambda row: row.token_cost, mean),
            flop_cost=self._figure(lambda row: row.flop_cost, mean),
            seconds=self._figure(lambda row: row.seconds, median),
            denoise_seconds=self._figure(lambda row: row.denoise_seconds, median),
            time_ratio=None if reference else interval(self._ratios(lambda row: row.seconds), median),
            denoise_ratio=None if reference else interval(self._ratios(lambda row: row.denoise_seconds), median),
            metrics={
                about.name: found
                for about in metrics
                if (found := interval(_metric(self._own, about.name), _pooling(about))) is not None
            },
            differences={}
            if reference
            else {
                about.name: found
                for about in metrics
                if not about.to_dense
                and (found := interval(_metric(self._own, about.name) - _metric(self._dense, about.name), mean))
            },
        )

    def _figure(self, of: Callable[[ImageRow], float], statistic: Statistic) -> Interval:
        found = interval(np.array([[of(row) for row in line] for line in self._own], dtype=np.float64), statistic)
        assert found is not None, "every row has it"
        return found

    def _ratios(self, of: Callable[[ImageRow], float]) -> Values:
        """Dense's time over this one's, NaN where they were not made moments apart."""
        lines = [
            [of(dense) / of(own) if dense.attempt == own.attempt else np.nan for dense, own in zip(*pair, strict=True)]
            for pair in zip(self._dense, self._own, strict=True)
        ]
        return np.array(lines, dtype=np.float64)


def _metric(lines: Sequence[Sequence[ImageRow]], name: str) -> Values:
    """[prompts, seeds], NaN where the metric says nothing."""
    return np.array([[row.metrics.get(name, np.nan) for row in line] for line in lines], dtype=np.float64)


def _pooling(about: MetricAbout) -> Statistic:
    return psnr_of_mean_error if about.pooled == MEAN_ERROR else mean
