"""What no later step reads isn't kept: nothing that a run gives depends on it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.policies import RAS, AccelAes, Dense, Drift, Plan, StepCache, TeaCache
from accelaes_export.policies.base import SpatialGuidance
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.eager_session import EagerSession
from tests.families import FAMILIES
from tests.watched_denoiser import BUCKETS, FRACTIONS

POLICIES = (
    Drift(cache_reach=1.0),
    Drift(theta=0.0),
    RAS(),
    AccelAes(mask_step=1, warmup=2),
    AccelAes(mask_step=1, warmup=2, spatial_cfg=SpatialGuidance(5.0, 3.0)),
    TeaCache(),
)


class Watched(EagerSession):
    """Notes which outputs every call was asked for."""

    def __init__(self, step) -> None:
        super().__init__(step)
        self.asked: list[set[str]] = []

    def run(self, inputs, outputs, workspace=None):
        self.asked.append(set(outputs))
        super().run(inputs, outputs, workspace)


@pytest.fixture(scope="module", params=["token", "component"])
def watched(request):
    """A session of SD3's family in small, and its latents' geometry."""
    tiny = FAMILIES["sd3"]
    variant = next(iter(tiny.variants))
    step = tiny.step(tiny.model(variant), variant, form=request.param)
    yield Watched(step), step.latents, tiny.backbone.guidance
    step.restore()


def carried_out(watched, policy, plan, *, first_order=True):
    """What every step gives."""
    session, latents, guidance = watched
    session.asked.clear()
    torch.manual_seed(0)
    weights = torch.rand(1, session.contract.text_tokens)
    denoiser = Denoiser(session, latents, FRACTIONS, guidance)
    plan = Plan(plan, BUCKETS)
    denoiser.start(Run(policy, plan, [float(i) for i in range(len(plan))], weights, first_order))
    found = []
    for i in range(len(plan)):
        inputs = example_inputs(session.contract, session.contract.tokens, B=2, seed=i)
        conditioning = {name: inputs[name] for name in session.contract.conditioning}
        now = StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, guidance.pairs)
        found.append(denoiser.step(i, now).clone())
    return found


def keys_asked_for(watched) -> str:
    """Of every call: whether it was asked for what is cached."""
    names = {entry.name for entry in watched[0].contract.cache}
    return "".join("+" if names <= asked else "-" if not names & asked else "?" for asked in watched[0].asked)


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    middle=st.text("D.ab", max_size=8),
    first_order=st.booleans(),
)
def test_a_run_goes_as_if_everything_were_kept(watched, policy, middle, first_order):
    plan = "DDD" + middle
    if policy.name == "teacache":
        plan = plan.replace("a", "D").replace("b", "D").replace(".", "D")
    found = carried_out(watched, policy, plan, first_order=first_order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "cache_is_read", lambda *_, **__: True)
        patch.setattr(Run, "history_is_read", lambda *_: True)
        wanted = carried_out(watched, policy, plan, first_order=first_order)
    assert all(torch.equal(own, other) for own, other in zip(found, wanted, strict=True)), plan


@pytest.mark.parametrize(
    ("policy", "plan", "asked"),
    [
        (Dense(), "DDDD", "----"),
        (StepCache(), "DD.D.", "---"),
        (AccelAes(mask_step=1, warmup=2), "DDD.bDDb", "--+--+-"),  # a mask's tokens write nothing back
        (Drift(cache_reach=0.0), "DDDb.bDDbD", "--++--+--"),
        (Drift(cache_reach=1.0), "DDDDbbD", "--+++--"),
        (TeaCache(), "DDDD", "----"),
    ],
)
def test_only_what_a_later_step_reads_is_fetched(watched, policy, plan, asked):
    carried_out(watched, policy, plan)
    assert keys_asked_for(watched) == asked


def test_a_policy_that_never_extrapolates_knows_nothing(watched, monkeypatch):
    from accelaes_export.policies import programs

    monkeypatch.setattr(programs, "taken_in", lambda *_, **__: pytest.fail("what is known was renewed"))
    carried_out(watched, Dense(), "DDDD")
    with pytest.raises(pytest.fail.Exception):
        carried_out(watched, StepCache(), "DD.D")
