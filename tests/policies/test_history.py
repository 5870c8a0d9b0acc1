"""Per-token history, against a loop over single tokens in float64 with Lagrange's form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.history_state import MEMORY
from tests.no_host_sync import NoHostSync
from tests.policies.held_history import History

torch.set_num_threads(1)


@st.composite
def runs(draw):
    """A run: image batch, tokens, channels, and computed steps (focus index or None, prediction, clock)."""
    b, N, d = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps, clock = [], draw(st.sampled_from([0.0, 1.0, 20.0]))
    direction = draw(st.sampled_from([1.0, -1.0]))  # step indices rise, sigmas fall
    for number in range(draw(st.integers(1, 7))):
        focus, n = None, N
        if number > 0 and draw(st.booleans()):
            n = draw(st.integers(1, N))
            focus = torch.stack([torch.randperm(N, generator=generator)[:n].sort().values for _ in range(b)])
        steps.append((focus, torch.randn(b, n, d, generator=generator), clock))
        clock += direction * draw(st.sampled_from([1.0, 2.0, 3.0, 0.25, 0.37]))
    return b, N, d, steps, clock


def by_token(b, N, d, steps, clock, order, reach):
    """The definition, token by token; also the size of the numbers that were added, for the tolerance."""
    predicted, size = np.zeros((b, N, d)), np.zeros((b, N, d))
    for image in range(b):
        for token in range(N):
            known = []
            for focus, prediction, when in steps:
                row = list(range(N)) if focus is None else focus[image].tolist()
                if token in row:
                    known.append((float(np.float32(when)), prediction[image, row.index(token)].double().numpy()))
            known = known[-(order + 1) :]
            target = float(np.float32(clock))
            if len(known) > 1 and reach is not None:
                last, gap = known[-1][0], known[-1][0] - known[-2][0]
                target = last + min((target - last) / gap, reach) * gap
            for j, (t_j, value) in enumerate(known):
                weight = np.prod([(target - t) / (t_j - t) for k, (t, _) in enumerate(known) if k != j])
                predicted[image, token] += weight * value
                size[image, token] += abs(weight) * abs(value)
    return predicted, size


def taken_in(steps, order, calibrated=False):
    history = History(order, calibrated=calibrated)
    for step in steps:
        history.update(*step)
    return history


reaches = st.sampled_from([None, 0.0, 0.5, 1.0, 2.5])


@given(runs(), st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2]), reaches)
@settings(deadline=None, max_examples=150)
def test_every_token_is_extrapolated_from_its_own_computed_predictions(run, order, kept, reach):
    b, N, d, steps, clock = run
    history = taken_in(steps, max(order, kept))
    predicted = history.at(clock, Extrapolation(order=order, reach=reach))
    expected, size = by_token(b, N, d, steps, clock, order, reach)
    assert predicted.dtype == torch.float32
    assert (np.abs(predicted.double().numpy() - expected) <= 2e-5 * size + 1e-7).all()


@given(runs(), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=50)
def test_at_the_clock_of_the_last_computation_the_prediction_comes_back_bit_for_bit(run, order):
    _, _, _, steps, _ = run
    history = taken_in(steps, order)
    focus, prediction, clock = steps[-1]
    predicted = history.at(clock, Extrapolation(order=order))
    if focus is not None:
        predicted = predicted.gather(1, focus.unsqueeze(-1).expand_as(prediction))
    assert torch.equal(predicted.view(torch.int32), prediction.view(torch.int32))


@given(st.sampled_from([0, 1, 2]), st.lists(st.integers(-4, 4), min_size=3, max_size=3), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_a_polynomial_of_the_orders_degree_is_reproduced_exactly(order, coefficients, gap):
    def polynomial(t):
        value = sum(c * t**k for k, c in enumerate(coefficients[: order + 1]))
        return torch.full((1, 2, 1), float(value))

    clocks = [0, gap, 3 * gap]  # uneven, and exact in binary
    history = taken_in([(None, polynomial(t), float(t)) for t in clocks], order)
    for ahead in (1, 2, 4):
        t = clocks[-1] + ahead * 2 * gap
        assert torch.allclose(history.at(float(t), Extrapolation(order=order)), polynomial(t), rtol=3e-6, atol=1e-4)


def test_beyond_its_reach_a_prediction_stays_where_it_was_at_one_gap():
    history = taken_in([(None, torch.tensor([[[1.0]]]), 0.0), (None, torch.tensor([[[3.0]]]), 4.0)], 1)
    limited = [history.at(t, Extrapolation(reach=1.0)).item() for t in (4.0, 6.0, 8.0, 9.0, 20.0)]
    assert limited == [3.0, 4.0, 5.0, 5.0, 5.0]
    assert history.at(20.0, Extrapolation()).item() == 11.0


def test_a_token_computed_once_is_held_and_one_computed_twice_is_extrapolated_linearly_at_order_two():
    one = torch.ones(1, 2, 1)
    history = taken_in([(None, one, 0.0)], 2)
    assert history.at(5.0, Extrapolation(order=2)).tolist() == [[[1.0], [1.0]]]
    history.update(torch.tensor([[1]]), 3 * torch.ones(1, 1, 1), 1.0)
    assert history.at(2.0, Extrapolation(order=2)).tolist() == [[[1.0], [5.0]]]


def test_two_computations_at_one_clock_value_hold_instead_of_dividing_by_zero():
    history = taken_in([(None, torch.zeros(1, 1, 1), 0.5), (None, torch.ones(1, 1, 1), 0.5)], 2)
    assert history.at(0.25, Extrapolation(order=2)).item() == 1.0


def came_true(b, steps):
    """The definition of what came true, row by row and token by token, in double precision."""
    shares = []
    for image in range(b):
        known, agreed, foreseen = {}, 0.0, 0.0
        for focus, prediction, when in steps:
            agreed, foreseen, when = MEMORY * agreed, MEMORY * foreseen, float(np.float32(when))
            tokens = range(prediction.shape[1]) if focus is None else focus[image].tolist()
            for place, token in enumerate(tokens):
                points, now = known.setdefault(token, []), prediction[image, place].double().numpy()
                if len(points) > 1:
                    (t0, before), (t1, last) = points[-2:]
                    change = (when - t1) / (t1 - t0) * (last - before)
                    agreed, foreseen = agreed + change @ (now - last), foreseen + change @ change
                points.append((when, now))
        shares.append(min(1.0, max(0.0, agreed / foreseen)) if foreseen else 0.0)
    return shares


@given(runs(), st.sampled_from([1, 2]), reaches)
@settings(max_examples=100)
def test_a_calibrated_history_carries_on_what_came_true_so_far_in_each_row_alone(run, order, reach):
    b, _, _, steps, clock = run
    plain, history = taken_in(steps, order), taken_in(steps, order, calibrated=True)
    shares = came_true(b, steps)
    assert history.came_true.tolist() == pytest.approx(shares, rel=1e-3, abs=1e-4)
    found = history.at(clock, Extrapolation(reach=reach, calibrated=True))
    for row, share in enumerate(shares):
        expected = plain.at(clock, Extrapolation(reach=reach, trend=share))[row]
        assert torch.allclose(found[row], expected, atol=2e-3 * max(1.0, plain.at(clock, Extrapolation()).abs().max()))


def test_predictions_on_a_line_are_carried_on_whole_and_ones_that_swing_are_held():
    line = [(None, torch.tensor([[[float(t)]]]), float(t)) for t in range(5)]
    calibrated = Extrapolation(calibrated=True)
    assert taken_in(line, 1, calibrated=True).at(7.0, calibrated).item() == pytest.approx(7.0)
    swing = [(None, torch.tensor([[[float(t % 2)]]]), float(t)) for t in range(5)]
    assert taken_in(swing, 1, calibrated=True).at(7.0, calibrated).item() == 0.0
    assert taken_in(swing, 1).at(7.0, Extrapolation()).item() == -3.0
    # Of two predictions nobody knows yet whether the change goes on.
    assert taken_in(line[:2], 1, calibrated=True).at(3.0, calibrated).item() == 1.0


@given(runs(), reaches, st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=80)
def test_tokens_the_latest_step_left_out_have_a_reach_of_their_own(run, reach, stale_reach):
    b, N, d, steps, clock = run
    predicted = taken_in(steps, 1).at(clock, Extrapolation(reach=reach, stale_reach=stale_reach))
    shorter = stale_reach if reach is None else min(reach, stale_reach)
    fresh, size = by_token(b, N, d, steps, clock, 1, reach)
    stale, stale_size = by_token(b, N, d, steps, clock, 1, shorter)
    focus = steps[-1][0]
    for image in range(b):
        for token in range(N):
            ran = focus is None or token in focus[image].tolist()
            expected, scale = (fresh, size) if ran else (stale, stale_size)
            off = np.abs(predicted[image, token].double().numpy() - expected[image, token])
            assert (off <= 2e-5 * scale[image, token] + 1e-7).all(), (image, token, ran)


@given(runs())
@settings(max_examples=80)
def test_taylors_series_has_backward_differences_for_derivatives(run):
    b, N, _, steps, clock = run
    predicted = taken_in(steps, 2).at(clock, Extrapolation(order=2, series="taylor"))
    for image in range(b):
        for token in range(N):
            known = []
            for focus, prediction, when in steps:
                row = list(range(N)) if focus is None else focus[image].tolist()
                if token in row:
                    known.append((float(np.float32(when)), prediction[image, row.index(token)].double().numpy()))
            (t, last), *earlier = known[:-4:-1]
            ahead, expected, size = float(np.float32(clock)) - t, last.copy(), np.abs(last)
            if earlier:
                first = (last - earlier[0][1]) / (t - earlier[0][0])
                expected, size = expected + ahead * first, size + np.abs(ahead * first)
            if len(earlier) == 2:
                before = (earlier[0][1] - earlier[1][1]) / (earlier[0][0] - earlier[1][0])
                second = (first - before) / (t - earlier[0][0])
                expected, size = expected + ahead**2 / 2 * second, size + ahead**2 * (np.abs(first) + np.abs(before))
                size = size + ahead**2 / abs(t - earlier[0][0]) * (np.abs(first) + np.abs(before))
            assert (np.abs(predicted[image, token].double().numpy() - expected) <= 2e-5 * size + 1e-6).all()


@given(runs(), st.integers(0, 2))
@settings(max_examples=80)
def test_estimates_are_each_tokens_own_last_prediction_change_age_and_drops(run, first):
    b, N, _, steps, clock = run
    rows = slice(min(first, b - 1), b)
    found = taken_in(steps, 1).estimates(rows, clock)
    for place, image in enumerate(range(b)[rows]):
        for token in range(N):
            known, drops = [], 0
            for focus, prediction, when in steps:
                row = list(range(N)) if focus is None else focus[image].tolist()
                drops = 0 if token in row else drops + 1
                if token in row:
                    known.append((float(np.float32(when)), prediction[image, row.index(token)]))
            assert torch.equal(found.last[place, token, 0], known[-1][1])
            assert found.drops[place, token] == drops
            assert found.age[place, token].item() == pytest.approx(abs(clock - known[-1][0]), rel=1e-5)
            drift = np.inf
            if len(known) > 1:
                change = (known[-1][1] - known[-2][1]).double().norm().item()
                drift = change / abs(known[-1][0] - known[-2][0])
            assert found.drift[place, token].item() == pytest.approx(drift, rel=1e-4)


def test_a_token_that_was_predicted_but_did_not_run_is_counted_as_dropped():
    history = taken_in([(None, torch.zeros(1, 3, 1), 0.0)], 1)
    history.update(None, torch.ones(1, 3, 1), 1.0, ran=torch.tensor([[1]]))
    history.update(None, torch.ones(1, 3, 1), 3.0, ran=torch.tensor([[1]]))
    estimates = history.estimates(slice(None), 4.0)
    assert estimates.drops.tolist() == [[2, 0, 2]]
    assert estimates.age.tolist() == [[4.0, 1.0, 4.0]]


def test_a_history_of_one_prediction_knows_no_drift():
    assert taken_in([(None, torch.zeros(1, 2, 1), 0.0)], 0).estimates(slice(None), 1.0).drift is None


@pytest.mark.parametrize("extrapolation", [Extrapolation(), Extrapolation(order=2), Extrapolation(calibrated=True)])
def test_at_its_own_clock_a_prediction_comes_back_exactly(extrapolation: Extrapolation):
    magnitudes = torch.logspace(-38, 36, 75)
    steps = [(None, (magnitudes * torch.randn(75)).reshape(1, 1, 75), float(k)) for k in range(3)]
    history = taken_in(steps, extrapolation.order, calibrated=extrapolation.calibrated)
    assert torch.equal(history.at(2.0, extrapolation), steps[-1][1])


def test_the_history_neither_keeps_nor_hands_out_the_callers_tensors():
    prediction = torch.ones(1, 2, 1)
    history = taken_in([(None, prediction, 0.0)], 1)
    prediction.fill_(7)
    for order in (0, 1):
        history.at(0.0, Extrapolation(order=order)).fill_(9)
    assert history.at(0.0, Extrapolation(order=1)).tolist() == [[[1.0], [1.0]]]


def test_half_precision_predictions_are_kept_in_single_precision():
    history = taken_in([(None, torch.ones(1, 1, 1, dtype=torch.float16), 0.0)], 1)
    assert history.at(1.0, Extrapolation()).dtype == torch.float32


def test_no_operation_waits_for_the_device():
    history = History(2, calibrated=True)
    with NoHostSync():
        history.update(None, torch.randn(2, 4, 3), 0.0)
        history.update(torch.tensor([[0, 2], [1, 3]]), torch.randn(2, 2, 3), 1.0)
        history.update(None, torch.randn(2, 4, 3), 2.0)
        history.at(3.0, Extrapolation(order=2, reach=1.0))
