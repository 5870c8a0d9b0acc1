"""Learned coefficients: the weights of a token's class, found for every token, and refused where they are of no use."""

from __future__ import annotations

import json
import math

import pytest
import torch

from accelaes_export.errors import InputError
from accelaes_export.policies import (
    Coefficients,
    Dense,
    Drift,
    DriftSchedule,
    Extrapolation,
    ModelFacts,
    TokenClass,
    from_name,
    options_of,
)
from accelaes_export.policies.history_state import HistoryState, taken_in, weighed
from tests.policies.held_history import nothing_known

b, N, d = 2, 9, 5
T = 7
SIGMAS = (*(1 - k / T for k in range(T)), 0.0)


def drawn(seed: int, share: float) -> Coefficients:
    """Weights of about a `share` of the classes there are."""
    generator = torch.Generator().manual_seed(seed)

    def one(age: int, gap: int, earlier: int) -> TokenClass:
        uncond, cond = (tuple(torch.randn(3, generator=generator).tolist()) for _ in range(2))
        return TokenClass(age, gap, earlier, uncond, cond)

    every = [(age, gap, earlier) for age in range(4) for gap in range(4) for earlier in range(4)]
    chosen = [[own for own in every if torch.rand((), generator=generator) < share] for _ in range(T)]
    return Coefficients(SIGMAS, 4.5, tuple(tuple(one(*own) for own in classes) for classes in chosen))


def runs(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions and the tokens they are of, by step: all at first, then some, at times none."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.ones(b, N), *(torch.rand(T - 1, b, N, generator=generator) < 0.4)]
    masks[3] = torch.zeros(b, N)
    return [(torch.randn(b, N, d, generator=generator), mask.bool()) for mask in masks]


def wanted(i: int, row: int, token: int, taken: list, coefficients: Coefficients, conditional: bool) -> torch.Tensor:
    """A token's prediction in float64, from the list of its own computations."""
    own = [(k, value[row, token].double()) for k, (value, mask) in enumerate(taken[: i + 1]) if mask[row, token]]
    own = own[::-1][:3]
    age = i - own[0][0]
    gap = own[0][0] - own[1][0] if len(own) > 1 else 0
    earlier = own[1][0] - own[2][0] if len(own) > 2 else 0
    for known in coefficients.steps[i]:
        if (known.age, known.gap, known.earlier) == (age, gap, earlier):
            weights = known.cond if conditional else known.uncond
            return sum((w * value for w, (_, value) in zip(weights, own, strict=False)), torch.zeros(d).double())
    return own[0][1]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_weighed_by_its_own_class(seed: int, share: float) -> None:
    coefficients, taken = drawn(seed, share), runs(seed)
    state, conditional = nothing_known(taken[0][0], 2), torch.tensor([0.0, 1.0])
    for i, (value, mask) in enumerate(taken):
        latest = torch.where(mask.unsqueeze(-1), value, state.predictions[0])
        if mask.any():
            state = taken_in(state, latest, float(i), mask)
        found = weighed(state, float(i), conditional, coefficients, coefficients.table())
        for row in range(b):
            for token in range(N):
                own = wanted(i, row, token, taken, coefficients, bool(conditional[row]))
                assert torch.allclose(found[row, token].double(), own, atol=1e-5), (i, row, token)


def test_where_nothing_was_learned_the_last_prediction_holds_exactly() -> None:
    nothing, taken = Coefficients(SIGMAS, 4.5, ((),) * T), runs(1)
    state = nothing_known(taken[0][0], 2)
    for i, (value, _) in enumerate(taken[:3]):
        state = taken_in(state, value, float(i))
    assert torch.equal(weighed(state, 5.0, torch.zeros(b), nothing, nothing.table()), taken[2][0])


def test_a_traced_step_gives_what_an_eager_one_gives_bit_for_bit() -> None:
    coefficients, taken = drawn(3, 1.0), runs(3)
    table, state = coefficients.table(), nothing_known(taken[0][0], 2)
    for i, (value, mask) in enumerate(taken):
        state = taken_in(state, torch.where(mask.unsqueeze(-1), value, state.predictions[0]), float(i), mask)

    class Program(torch.nn.Module):
        def forward(self, state, i, conditional):
            return weighed(HistoryState(*state), i, conditional, coefficients, table)

    inputs = (tuple(state), torch.tensor(6.0), torch.tensor([1.0, 0.0]))
    traced = torch.export.export(Program(), inputs, strict=False).module()(*inputs)
    assert torch.equal(traced, weighed(state, 6.0, inputs[2], coefficients, table))


def test_they_are_a_policys_options_as_plain_data_and_come_back_from_them() -> None:
    coefficients = drawn(0, 0.3)
    policy = from_name("drift", {"budget": 6, "plan": "DDDbb.b", "learned": coefficients})
    data = json.loads(json.dumps(options_of(policy)))
    again = from_name("drift", data)
    assert again == policy and again.extrapolation.coefficients == coefficients
    assert str(again.plan(T, (0.25, 0.5, 0.75))) == "DDDbb.b" and again.own_steps == T
    # Kept of the policy's own: how far what is cached is carried on, and which tokens run.
    assert again.extrapolation == Extrapolation(
        2, cache_reach=Drift(budget=6).extrapolation.cache_reach, coefficients=coefficients
    )
    assert again.selector().moving


def test_a_models_plan_brings_its_own_unless_it_is_said_how_to_extrapolate() -> None:
    coefficients, buckets = drawn(0, 0.3), (0.25, 0.5, 0.75)
    schedule = DriftSchedule("DDDbb.b", theta=0.2, trend=0.7, cache_reach=0.4, coefficients=coefficients)
    model = ModelFacts(28, buckets, {5: schedule})
    own = from_name("drift", {"budget": 5}, model)
    assert own.extrapolation == Extrapolation(2, cache_reach=0.4, coefficients=coefficients)
    assert str(own.plan(own.own_steps, buckets)) == "DDDbb.b"
    assert from_name("drift", {"budget": 5, "mask_weight": 0.5}, model).extrapolation.coefficients == coefficients
    for option in ({"trend": 0.5}, {"theta": 0.2}, {"cache_reach": 0.4}, {"calibrated": False}, {"order": 2}):
        assert from_name("drift", {"budget": 5} | option, model).extrapolation.coefficients is None
    for other in ({"budget": 6}, {"budget": 5, "plan": "DDDbbbb"}):
        assert from_name("drift", other, model).extrapolation.coefficients is None
    with pytest.raises(InputError, match="coefficients are of 7 steps, but the plan DDD has 3"):
        DriftSchedule("DDD", 0.2, 1.0, 0.5, coefficients)


def test_sigmas_are_those_of_the_fit_within_a_thousandth() -> None:
    coefficients = drawn(0, 0.1)
    assert coefficients.fit([sigma + 5e-4 for sigma in SIGMAS])
    assert not coefficients.fit([sigma + 5e-3 for sigma in SIGMAS])
    assert not coefficients.fit(SIGMAS[:-1]) and not coefficients.fit([math.nan] * (T + 1))


ONE = {"age": 0, "gap": 1, "earlier": 0, "uncond": [1, 0, 0], "cond": [1, 0, 0]}
WHOLE = {"sigmas": [1.0, 0.5, 0.0], "guidance": 4.5, "steps": [[], [ONE]]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sigmas": [1.0, 0.0]}, "2 steps and 2 sigmas"),
        ({"sigmas": [1.0, 1.0, 0.0]}, "don't fall"),
        ({"sigmas": [math.nan, 1.0, 0.0]}, "don't fall"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"steps": []}, "0 steps"),
        ({"steps": [[], [ONE, ONE]]}, "Step 1 of the coefficients has a class of tokens twice"),
        ({"steps": [[], [ONE | {"age": -1}]]}, "age -1"),
        ({"steps": [[], [ONE | {"gap": 21}]]}, "gap 21"),
        ({"steps": [[], [ONE | {"cond": [1, 0]}]]}, "steps.1.0.cond"),
        ({"steps": [[], [ONE | {"cond": [1, 0, math.inf]}]]}, "weights cond"),
        ({"steps": [[], [ONE | {"more": 1}]]}, "steps.1.0.more"),
        ({"steps": 3}, "steps"),
        ({"learned": True}, "learned"),
    ],
)
def test_what_is_wrong_with_them_is_said_in_a_sentence(changed: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Coefficients.of(WHOLE | changed)


def test_a_plan_they_are_not_for_and_a_policy_that_decides_by_itself_are_refused() -> None:
    fitted = Coefficients.of(WHOLE)
    with pytest.raises(InputError, match="coefficients are of 2 steps, but the plan DDD has 3"):
        from_name("dense", {"plan": "DDD", "learned": fitted})
    with pytest.raises(InputError, match="without the plan"):
        from_name("dense", {"learned": fitted})
    with pytest.raises(InputError, match="teacache decides during the run"):
        from_name("teacache", {"plan": "DD", "learned": fitted})
    # What TeaCache calls its coefficients is its own.
    own = from_name("teacache", {"coefficients": [0.5, 1.0]})
    assert from_name("teacache", options_of(own)) == own
    with pytest.raises(InputError, match="order 2, clock step, theta 0"):
        Extrapolation(coefficients=fitted)
    assert from_name("dense", {"plan": "DD", "learned": fitted}).policy == Dense()
