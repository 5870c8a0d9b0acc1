"""Focus and background tokens, against sorting lists in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies import AccelAes
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.selection import (
    FocusSets,
    OneShotMask,
    background_of,
    focus_count,
    focus_mask,
    top_tokens,
)
from tests.no_host_sync import NoHostSync

torch.set_num_threads(1)


def chosen(sets: FocusSets, i: int, n: int) -> torch.Tensor:
    """The tokens of step i; a one-shot mask doesn't look at what is known of them."""
    unseen = Estimates(*[torch.full((1, 1), torch.nan)] * 4)
    return sets.select(i, n, lambda affinity, mask: sets.selector.score(unseen, affinity, mask))


@st.composite
def scores(draw):
    """[b, N] with many ties, and a number of focus tokens."""
    b, N = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    values = st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.25, 1.0, 3.0]), min_size=N, max_size=N)
    return torch.tensor([draw(values) for _ in range(b)]), draw(st.integers(1, N))


@given(scores())
@settings(deadline=None)
def test_focus_tokens_are_the_largest_with_ties_to_the_lower_index_in_ascending_order(case):
    score, n = case
    focus = top_tokens(score, n)
    assert focus.dtype == torch.int64
    for row, chosen in zip(score.tolist(), focus.tolist(), strict=True):
        assert chosen == sorted(sorted(range(len(row)), key=lambda token: (-row[token], token))[:n])


@given(scores())
@settings(deadline=None)
def test_background_is_all_the_other_tokens_in_ascending_order(case):
    score, n = case
    N = score.shape[1]
    focus = top_tokens(score, n)
    background = background_of(focus, N)
    assert background.shape == (score.shape[0], N - n)
    for chosen, rest, mask in zip(focus.tolist(), background.tolist(), focus_mask(focus, N).tolist(), strict=True):
        assert rest == [token for token in range(N) if token not in chosen]
        assert mask == [float(token in chosen) for token in range(N)]


def test_no_operation_waits_for_the_device():
    selector = FocusSets(OneShotMask(step=0))
    with NoHostSync():
        selector.observe(0, torch.rand(2, 8))
        background_of(chosen(selector, 1, 3), 8)
        selector.mask()


def test_each_image_has_its_own_set():
    mask = FocusSets(OneShotMask(step=2))
    mask.observe(2, torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    assert chosen(mask, 4, 2).tolist() == [[0, 1], [2, 3]]


def test_the_mask_is_built_at_its_step_and_kept():
    selector = FocusSets(AccelAes(skip_ratio=0.75, mask_step=5).selector())
    affinity = torch.tensor([[0.1, 0.9, 0.3, 0.2]])
    assert selector.affinity() is None
    assert selector.mask() is None
    selector.observe(4, 1 - affinity)
    with pytest.raises(InputError, match="Step 7 is SPARSE.*after step 5.*smaller mask_step"):
        chosen(selector, 7, 1)
    selector.observe(5, affinity)
    affinity.zero_()  # an engine writes the next step's affinity into the same buffer
    selector.observe(9, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert chosen(selector, 10, 1).tolist() == [[1]]
    assert chosen(selector, 12, 2).tolist() == [[1, 2]]
    assert selector.mask().tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_a_selector_used_again_forgets_the_last_run():
    selector = FocusSets(OneShotMask(step=1))
    for best in (0, 1):
        selector.observe(1, torch.eye(2)[best][None])
        assert chosen(selector, 3, 1).tolist() == [[best]]


@pytest.mark.parametrize("n", [0, 5])
def test_too_few_or_too_many_focus_tokens_are_refused(n):
    with pytest.raises(InputError, match=f"{n} focus tokens.*1 to N = 4"):
        top_tokens(torch.zeros(1, 4), n)


@pytest.mark.parametrize(
    ("fraction", "tokens", "n"), [(0.5, 256, 128), (0.5, 145, 73), (0.25, 4096, 1024), (0.01, 4, 1), (1.0, 7, 7)]
)
def test_a_buckets_size_is_rounded_halves_up_and_never_empty(fraction, tokens, n):
    assert focus_count(fraction, tokens) == n
