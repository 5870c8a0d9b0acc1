"""What an evaluation says, as data: a row for every picture, and the summary `--save-json` writes.

Rows are JSON lines in `pictures.jsonl` of the evaluation's folder, the summary is `summary.json` beside it. Numbers may
be infinite (PSNR of equal pictures); JSON has them as the strings "Infinity" and "-Infinity".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from accelaes_export.contract.records import Record

SCHEMA_VERSION = 1
DENSE = "dense"
"""The label of the reference: every evaluation has it."""

Better = Literal["higher", "lower", "neither"]


class _Row(Record):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class Words(_Row):
    """The prompt's words behind the mask and their weights α, by whom they were scored ("clip" or "lexical"), and
    whether none scored high enough, so that all weigh the same."""

    scorer: str
    fallback: bool
    words: tuple[str, ...]
    weights: tuple[float, ...]


class ImageRow(_Row):
    """One picture: who made it, what it took and what was measured on it.

    Attributes:
        policy: the policy's label; "dense" is the reference.
        prompt_index: from 0, in the prompt file's order.
        file: the picture, relative to the evaluation's folder; of a video an animated PNG.
        steps: T.
        plan: as carried out, one symbol a step.
        token_cost: computed token-steps Σ n/N, in dense steps.
        flop_cost: counted FLOPs of all engine calls, in dense steps.
        seconds: from the prompt to the picture, text encoders and VAE included.
        denoise_seconds: of the steps alone, engine and policy.
        attempt: how often this evaluation had been started before; times are compared within one attempt.
        metrics: by name; those that say nothing of this picture are left out (a distance to dense of dense itself).
        words: behind the mask; None where the policy has none.
        focus_index: tokens computed at the last sparse step, row-major; None without sparse steps.
        affinity: of all N tokens, what the mask was built from, to 4 digits; None without one.
        cut: what the text encoders had no room for, or ''.
        kept: the parts' mean share at every step of a plan with layer-wise steps.
    """

    policy: str
    prompt_index: int
    prompt: str
    seed: int
    file: str
    steps: int
    plan: str
    token_cost: float
    flop_cost: float
    seconds: float
    denoise_seconds: float
    attempt: int
    metrics: dict[str, float]
    words: Words | None = None
    focus_index: tuple[int, ...] | None = None
    affinity: tuple[float, ...] | None = None
    cut: str = ""
    kept: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, int, int]:
        """(policy, prompt index, seed): one row each."""
        return self.policy, self.prompt_index, self.seed


class Interval(_Row):
    """A figure over pictures, with its 95 % confidence interval from resampled prompts.

    Attributes:
        low, high: None where fewer than two prompts have a value.
        pictures, prompts: that have a value.
    """

    value: float
    low: float | None
    high: float | None
    pictures: int
    prompts: int


class MetricAbout(_Row):
    """What a metric is.

    Attributes:
        better: which way is good.
        unit: "dB", or ''.
        to_dense: a distance to dense's picture; others are compared with dense picture by picture.
        pooled: how pictures become one figure: "mean", or "PSNR of the mean squared error".
        source: the definition, or library, version and weights.
    """

    name: str
    title: str
    better: Better
    unit: str
    to_dense: bool
    pooled: str
    source: str


class AbsentMetric(_Row):
    """A metric that wasn't measured, why, and what mends it."""

    name: str
    reason: str
    remedy: str


class PolicyQuality(_Row):
    """One policy over all prompts and seeds.

    Attributes:
        label: what it was asked for as, e.g. "drift:budget=12".
        name, settings: as `policies.named` takes them.
        steps: T.
        plan: of the first picture; `plans` is how many different ones there were (a policy may decide by the data).
        token_cost, flop_cost: mean, in dense steps.
        seconds, denoise_seconds: median, of one picture.
        time_ratio: median of dense's seconds over this one's, same prompt and seed, made moments apart; None for
            dense, and where no picture was made in the same attempt as its dense one.
        denoise_ratio: the same of denoise_seconds.
        metrics: by name, pooled as MetricAbout says.
        differences: of metrics that aren't distances: mean of this less dense, same prompt and seed; empty for dense.
        kept: as of the first picture.
    """

    label: str
    name: str
    settings: dict[str, Any]
    steps: int
    plan: str
    plans: int
    pictures: int
    token_cost: Interval
    flop_cost: Interval
    seconds: Interval
    denoise_seconds: Interval
    time_ratio: Interval | None
    denoise_ratio: Interval | None
    metrics: dict[str, Interval]
    differences: dict[str, Interval]
    kept: tuple[float, ...] = ()


class QualityReport(_Row):
    """A whole evaluation, as `--save-json` writes it."""

    schema_version: int = SCHEMA_VERSION
    created_by: str
    created: str  # ISO 8601, UTC
    bundle: dict[str, Any]  # what the manifest says: model, build_key, form, backend, dtype, N, buckets ...
    request: dict[str, Any]  # policies, prompts, seeds, steps, guidance, metrics
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()  # what makes these figures doubtful
    attempts: int  # how often it was started until it was whole
    resamples: int  # of the prompts, behind every interval
    policies: tuple[PolicyQuality, ...]  # in the order asked for, dense first
    metrics: tuple[MetricAbout, ...]
    absent: tuple[AbsentMetric, ...] = ()
