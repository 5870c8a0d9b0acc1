"""EasyCache's decisions, against its rule written out in float64, and in a run."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies import EasyCache, StepKind
from accelaes_export.policies.gating import Decisions
from accelaes_export.policies.programs import Picture, nothing_seen, programs_of
from accelaes_export.runtime.trajectory import Run
from tests.watched_denoiser import BUCKETS, conditions, make


def walk(T: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents and what a model would say of them: [T, 2, 3] both."""
    generator = np.random.default_rng(seed)
    latents = np.cumsum(generator.normal(size=(T, 2, 3)) * 0.1, axis=0) + 1
    return latents, latents * 0.7 + np.cumsum(generator.normal(size=(T, 2, 3)) * 0.05, axis=0)


def expected(latents: np.ndarray, outputs: np.ndarray, policy: EasyCache) -> str:
    """The rule, step by step, with all that was computed kept."""
    T, done, total = len(latents), [], 0.0
    for i in range(T):
        if i >= policy.warmup:
            b, a = done[-1], done[-2]
            k = abs(outputs[b] - outputs[a]).mean() / abs(latents[b] - latents[a]).mean()
            total += k * abs(latents[i] - latents[i - 1]).mean() / abs(outputs[b]).mean()
        if i < policy.warmup or total >= policy.threshold or i == T - 1:
            done.append(i)
            total = 0.0
    return "".join("D" if i in done else "." for i in range(T))


def decisions_of(policy: EasyCache, *like: int) -> Decisions:
    picture = Picture((), (1, 1), 1, None, rescaled=False, cells=lambda tokens: tokens, component=False)
    programs = {program.name: program.compute for program in programs_of(policy, picture)}
    unseen = partial(nothing_seen, policy.gate(), prediction=torch.zeros(like))
    return Decisions(programs["decide"], programs["observe"], unseen)


@given(
    T=st.integers(2, 20),
    seed=st.integers(0, 50),
    threshold=st.floats(0.01, 2),
    warmup=st.integers(2, 6),
)
def test_a_step_is_computed_once_the_foreseen_change_adds_up_to_the_threshold(T, seed, threshold, warmup):
    policy = EasyCache(threshold=threshold, warmup=warmup)
    latents, outputs = walk(T, seed)
    decisions, found = decisions_of(policy, 2, 3), ""
    for i in range(T):
        now = torch.from_numpy(latents[i])
        computes = decisions.computes(i, now, last=i == T - 1)
        assert decisions.computes(i, now * 2, last=False) == computes, (
            "a step's second call gets the answer of the first"
        )
        if computes:
            decisions.observe(torch.from_numpy(outputs[i]))
        found += "D" if computes else "."
    wanted = expected(latents, outputs, policy)
    others = {expected(latents, outputs, EasyCache(threshold=threshold * f, warmup=warmup)) for f in (0.9999, 1.0001)}
    assert found == wanted or found in others, "but where rounding decides"


def test_a_run_computes_the_beginning_and_the_end_and_skips_what_changes_little():
    T, policy = 12, EasyCache(threshold=1e9, warmup=3)
    denoiser, session = make()
    denoiser.start(Run(policy, policy.plan(T, BUCKETS), range(T)))
    for i in range(T):
        assert denoiser.step(i, conditions(denoiser, i, 2)).isfinite().all()
    report = denoiser.report()
    assert str(report.plan) == "DDD" + "." * 8 + "D"
    assert [record.kind is StepKind.SKIP for record in report.steps] == [symbol == "." for symbol in str(report.plan)]
    assert len(session.calls) == 4


def test_a_smaller_threshold_computes_no_less():
    latents, outputs = walk(30, 7)
    counts = [expected(latents, outputs, EasyCache(threshold=t)).count("D") for t in (0.02, 0.1, 0.5, 2.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_a_prediction_that_is_no_number_is_never_held():
    decisions = decisions_of(EasyCache(warmup=2), 1)
    for i in range(6):
        assert decisions.computes(i, torch.ones(1) * i, last=False)
        decisions.observe(torch.full((1,), float("nan")))


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": float("nan")}, {"threshold": "x"}, {"warmup": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        EasyCache(**options)


def test_predictions_may_have_another_shape_than_latents():
    """PixArt's and DiT's have a variance behind them."""
    decisions = decisions_of(EasyCache(warmup=2, threshold=1e9), 2, 8, 3, 3)
    for i in range(2):
        assert decisions.computes(i, torch.full((2, 4, 3, 3), 1.0 + i), last=False)
        decisions.observe(torch.full((2, 8, 3, 3), 2.0 + i))
    assert not decisions.computes(2, torch.full((2, 4, 3, 3), 9.0), last=False)
