"""RAS and drift choose the tokens that plain loops over single tokens choose, and leave none waiting for ever."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.moving import FLOOR, LargestDrift, RegionAdaptive
from accelaes_export.policies.selection import FocusSets
from tests.no_host_sync import NoHostSync
from tests.policies.held_history import History

torch.set_num_threads(1)


def select(sets: FocusSets, i: int, n: int, estimates: Estimates) -> torch.Tensor:
    """The tokens of step i, by the selector's score."""
    return sets.select(i, n, lambda affinity, mask: sets.selector.score(estimates, affinity, mask))


@st.composite
def situations(draw):
    """What is known of b images' tokens, [b, N], and how many are to be chosen."""
    b, N, P, C = draw(st.integers(1, 3)), draw(st.integers(2, 30)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.integers(-6, 6))  # R is relative: no scale of the model's numbers matters
    spread = torch.exp(2 * torch.randn(b, N, 1, 1, generator=generator))
    estimates = Estimates(
        last=scale * spread * torch.randn(b, N, P, C, generator=generator),
        drift=scale * torch.exp(2 * torch.randn(b, N, generator=generator)),
        age=torch.randint(1, 9, (b, N), generator=generator).float(),
        drops=torch.randint(0, 100, (b, N), generator=generator, dtype=torch.int32),
    )
    affinity = torch.rand(b, N, generator=generator)
    return estimates, affinity, draw(st.integers(1, N))


def largest(scores, n):
    """Indices of the n largest, ascending; None where rounding could decide which they are."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if n < len(scores) and scores[order[n - 1]] - scores[order[n]] < 1e-4:
        return None
    return sorted(order[:n])


def deviation(values):
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def chosen_by_region(estimates, n, metric, k, always):
    """RAS's Eq. 1 with the sign that helps dropped tokens, as loops in double precision; one row an image."""
    rows = []
    for b in range(len(estimates.last)):
        measures = []
        for token in estimates.last[b].double().tolist():
            if metric == "std":
                measures.append(math.fsum(deviation(cell) for cell in token) / len(token))
            else:
                measures.append(math.sqrt(math.fsum(value * value for cell in token for value in cell)))
        floor = FLOOR * math.fsum(measures) / len(measures)
        scores = []
        for token, (measure, drops) in enumerate(zip(measures, estimates.drops[b].tolist(), strict=True)):
            log_r = math.log(max(measure, floor))
            scores.append(-(log_r - k * drops) if metric == "std" else log_r + k * drops)
            if token in always[b]:
                scores[-1] = 1e9
        rows.append(largest(scores, n))
    return rows


@given(
    situations(),
    st.sampled_from(["std", "norm"]),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.sampled_from([0, 0.25, 0.5]),
)
@settings(max_examples=150)
def test_ras_takes_the_smallest_deviations_or_largest_norms_times_the_starvation_factor(case, metric, k, kept):
    estimates, affinity, n = case
    N = affinity.shape[1]
    count = min(max(math.floor(kept * N + 0.5), 1), N) if kept else 0
    assume(count <= n)
    always = [sorted(range(N), key=lambda token: (-row[token], token))[:count] for row in affinity.tolist()]
    expected = chosen_by_region(estimates, n, metric, k, always)
    assume(None not in expected)
    selector = FocusSets(RegionAdaptive(metric, k, kept=kept, mask_step=3 if kept else None))
    for step in (2, 3, 4):
        selector.observe(step, affinity if step == 3 else 1 - affinity)
    assert select(selector, 5, n, estimates).tolist() == expected
    assert all(set(own) <= set(focus) for own, focus in zip(always, expected, strict=True))


@given(situations(), st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=100)
def test_drift_takes_the_largest_products_of_change_and_age_weighted_by_the_mask(case, weight):
    estimates, affinity, n = case
    expected = []
    for drift, age, own in zip(estimates.drift.tolist(), estimates.age.tolist(), affinity.tolist(), strict=True):
        floor, least = FLOOR * math.fsum(drift) / len(drift), FLOOR * math.fsum(own) / len(own)
        scores = [
            math.log(max(d, floor)) + math.log(a) + weight * math.log(max(m, least))
            for d, a, m in zip(drift, age, own, strict=True)
        ]
        expected.append(largest(scores, n))
    assume(None not in expected)
    selector = FocusSets(LargestDrift(weight, mask_step=1 if weight else None))
    selector.observe(1, affinity)
    assert select(selector, 5, n, estimates).tolist() == expected


def test_tokens_nobody_knows_the_drift_of_come_first():
    drift = torch.tensor([[1.0, torch.inf, 5.0, torch.inf]])
    one = torch.ones(1, 4)
    selector = FocusSets(LargestDrift())
    assert select(selector, 3, 2, Estimates(one, drift, one, one)).tolist() == [[1, 3]]
    assert select(selector, 4, 3, Estimates(one, drift, one, one)).tolist() == [[1, 2, 3]]


def rounds(selector, measured, N, n, steps):
    """Dense at step 0, then `steps` sparse ones; the largest number of sparse steps any token waited for its turn.

    `measured(i, focus)` is the prediction [1, n, 2] of step i.
    """
    history, selector = History(1), FocusSets(selector)
    everything = torch.arange(N)[None]
    for i in (0, 1):
        history.update(None, measured(i, everything), float(i))
    waiting, longest = [0] * N, 0
    for i in range(2, steps + 2):
        focus = select(selector, i, n, history.estimates(slice(None), float(i)))
        history.update(focus, measured(i, focus), float(i))
        ran = set(focus[0].tolist())
        waiting = [0 if token in ran else waited + 1 for token, waited in enumerate(waiting)]
        longest = max(longest, *waiting)
        assert history.estimates(slice(None), float(i)).drops[0].tolist() == waiting
    return longest


@given(
    N=st.integers(2, 16),
    n=st.integers(1, 8),
    k=st.sampled_from([0.1, 0.5, 2.0]),
    metric=st.sampled_from(["std", "norm"]),
    seed=st.integers(0, 1000),
    extreme=st.sampled_from([None, 0.0, 1e-9, 1e9]),
)
@settings(max_examples=60)
def test_with_starvation_control_no_token_waits_longer_than_the_bound(N, n, k, metric, seed, extreme):
    """R counts as FLOOR to N times its mean, so logarithms of R lie within G k of each other, G = log(N / FLOOR) / k.

    Let a token have been left out D > G times. Whatever was chosen in its place had a score at least as large, so it
    was itself left out D - G times or more. If D > G + w with w = ceil((N - 1) / n), then in each of the last w steps
    n tokens were chosen that had each waited for w steps or more, so none of them twice: these are n w >= N - 1
    different ones, all but the token itself. After that nothing else has waited for w steps, and the token is chosen:
    D <= G + 2 w.
    """
    assume(n < N)
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.linspace(0, 3, N))  # each token's own; half to twice that at any step
    if extreme is not None:
        size[0] = extreme

    def measured(i, focus):
        noise = 2 ** (2 * torch.rand(focus.shape, generator=generator) - 1)
        return (size[focus] * noise)[..., None] * torch.tensor([1.0, -1.0])

    bound = math.log(N / FLOOR) / k + 2 * math.ceil((N - 1) / n)
    assert rounds(RegionAdaptive(metric, k), measured, N, n, int(bound) + 5) <= bound


@pytest.mark.parametrize("metric", ["std", "norm"])
def test_without_starvation_control_the_same_tokens_starve(metric):
    size = torch.arange(1.0, 9.0)

    def measured(i, focus):
        return size[focus][..., None] * torch.tensor([1.0, -1.0])

    assert rounds(RegionAdaptive(metric, 0.0), measured, 8, 3, 50) == 50
    assert rounds(RegionAdaptive(metric, 0.5), measured, 8, 3, 50) <= math.log(8) / 0.5 + 2 * 3


@given(N=st.integers(2, 16), n=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_drift_leaves_no_token_waiting_longer_than_the_bound(N, n, seed):
    """Let drifts lie between r and r g. A token left out for A steps has a score of at least r A, so whatever is chosen
    in its place has waited A / g or longer, and from then on is chosen at most once in A / g steps. In the next A
    steps the others fill at most (N - 1)(g + 1) of the n A places, so A <= (N - 1)(g + 1) / n, and it waits 2 A.
    """
    assume(n < N)
    generator = torch.Generator().manual_seed(seed)
    speed = torch.exp(torch.linspace(0, 2, N))  # what a prediction gains a step, always the same way

    def measured(i, focus):
        gain = speed[focus] * (i + 0.1 * torch.rand(focus.shape, generator=generator))
        return gain[..., None].expand(*focus.shape, 2)

    g = math.exp(2) * 1.1 / 0.9
    bound = 2 * (N - 1) * (g + 1) / n
    assert rounds(LargestDrift(), measured, N, n, min(int(bound) + 5, 300)) <= bound


def test_a_token_that_never_changed_is_not_forgotten():
    speed = torch.tensor([0.0, 1.0, 1.0, 1.0])

    def measured(i, focus):
        return (i * speed[focus])[..., None]

    # Its drift counts as FLOOR of the mean, .75: it outweighs one that waits for at most 2 steps after that many.
    assert 100 < rounds(LargestDrift(), measured, 4, 2, 4000) <= 2 * 2 / (FLOOR * 0.75)


def test_a_steps_second_call_gets_the_first_ones_tokens():
    selector = FocusSets(LargestDrift())
    one = torch.ones(1, 3)
    first = select(selector, 4, 1, Estimates(one, torch.tensor([[1.0, 3.0, 2.0]]), one, one))
    again = select(selector, 4, 1, Estimates(one, torch.tensor([[9.0, 3.0, 2.0]]), one, one))
    assert again is first
    assert first.tolist() == [[1]]
    assert select(selector, 5, 1, Estimates(one, torch.tensor([[9.0, 3.0, 2.0]]), one, one)).tolist() == [[0]]


def test_the_mask_is_kept_shown_and_asked_for():
    selector = FocusSets(LargestDrift(1.0, mask_step=2, fraction=0.25))
    one = torch.ones(1, 4)
    assert (selector.affinity(), selector.mask()) == (None, None)
    with pytest.raises(InputError, match="Step 5 is SPARSE, but the mask is built after step 2"):
        select(selector, 5, 1, Estimates(one, one, one, one))
    affinity = torch.tensor([[0.1, 0.9, 0.3, 0.2]])
    selector.observe(2, affinity)
    affinity.zero_()  # an engine writes the next step's affinity into the same buffer
    assert select(selector, 5, 2, Estimates(one, one, one, one)).tolist() == [[1, 2]]
    assert selector.mask().tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_no_operation_waits_for_the_device():
    history = History(1)
    selectors = [RegionAdaptive("std", 0.1, kept=0.25, mask_step=0), RegionAdaptive("norm", 0.1), LargestDrift(1.0, 0)]
    with NoHostSync():
        for i in range(2):
            history.update(None, torch.randn(4, 8, 4), float(i))
        for selector in map(FocusSets, selectors):
            selector.observe(0, torch.rand(2, 8))
            focus = select(selector, 3, 3, history.estimates(slice(2, 4), 3.0))
            selector.mask()
        history.update(torch.cat([focus, focus]), torch.randn(4, 3, 4), 3.0)
        history.at(4.3, Extrapolation(reach=1.0, stale_reach=0.0, theta=0.3))
