"""The loop, and policies in it: the model's own trajectory, spans that add up, and limits counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from accelaes_export.building.verification import model_arguments
from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.host_waits import HostWaits
from accelaes_export.measure.profiling.peers import PeerRun
from accelaes_export.measure.profiling.policies import PolicyRun, flop_cost, runtime, step_kinds
from accelaes_export.measure.profiling.spans import ENGINE, RUN, STEP, Span, Spans
from accelaes_export.measure.profiling.timing import HostStopwatch, Timing
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.runtime.report import GraphUse, RunReport, StepRecord
from tests.eager_session import EagerSession
from tests.families import FAMILIES
from tests.measure.profiling.tiny import tiny

CPU = torch.device("cpu")
T = 12


def spans() -> Spans:
    return Spans(HostStopwatch())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_policy_and_the_diffusers_model_walk_the_same_way(family: str) -> None:
    """Same weights, noise, conditioning and loop: pairs in one call, a second call, or a single one."""
    manifest, model, step = tiny(family)
    problem = DenoiseProblem(manifest, 1, 4, CPU)
    ours = PolicyRun("dense", Dense(), EagerSession(step), manifest, problem, spans())()
    theirs = PeerRun("eager", model, problem, spans(), model_arguments(manifest, model))()
    assert (ours != problem.noise).any()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_loop_guides_and_steps_as_a_flow_matching_pipeline_does() -> None:
    manifest, _, _ = tiny("sd3", guidance=3.0)
    problem = DenoiseProblem(manifest, 2, 2, CPU)
    seen = []

    def predict(i, now, branch):
        seen.append((i, branch, now))
        return torch.cat([torch.full_like(problem.noise, 1.0), torch.full_like(problem.noise, 2.0)])  # u = 1, c = 2

    x = problem.run(predict, spans(), "p")
    velocity = 1 + 3.0 * (2 - 1)
    torch.testing.assert_close(x, problem.noise - velocity)  # sigma falls from 1 to 0 in all
    first, second = seen[0][2], seen[1][2]
    torch.testing.assert_close(second.hidden_states, torch.cat([problem.noise - velocity / 2] * 2))
    assert (first.timestep[0], second.timestep[0]) == (1000, 500)
    assert first.hidden_states.shape[0] == 4 and first.paired


@pytest.mark.parametrize(
    ("family", "guidance", "calls", "paired"),
    [
        ("sd3", 4.5, ("cond",), True),
        ("sd3", 1.0, ("cond",), False),
        ("qwen-image", 4.0, ("cond", "uncond"), False),
        ("flux", 0.0, ("cond",), False),
        ("dit", 4.0, ("cond",), True),
    ],
)
def test_a_step_has_the_calls_its_pipelines_make(
    family: str, guidance: float, calls: tuple[str, ...], paired: bool
) -> None:
    manifest, _, _ = tiny(family, guidance=guidance)
    problem = DenoiseProblem(manifest, 1, 2, CPU)
    assert (problem.calls, problem.paired) == (calls, paired)


def test_distilled_guidance_is_an_input_and_no_second_call() -> None:
    manifest, _, _ = tiny("flux", guidance=3.5, variant="dev, guidance embedded")
    assert DenoiseProblem(manifest, 1, 2, CPU).calls == ("cond",)


def test_a_second_calls_predictions_are_guided() -> None:
    manifest, _, _ = tiny("qwen-image", guidance=3.0)
    problem = DenoiseProblem(manifest, 1, 2, CPU)
    x = problem.run(
        lambda i, now, branch: torch.full_like(problem.noise, 2.0 if branch == "cond" else 1.0), spans(), "p"
    )
    torch.testing.assert_close(x, problem.noise - 4.0)


def test_a_profile_says_what_was_run_and_what_it_would_cost() -> None:
    manifest, _, step = tiny("sd3")
    session, recorder = EagerSession(step), spans()
    problem = DenoiseProblem(manifest, 3, T, CPU)  # more pictures than one call takes
    runs = [PolicyRun(policy.name, policy, session, manifest, problem, recorder) for policy in (Dense(), AccelAes())]
    for run in runs:
        run()
        run.keep()
    timings = {"dense": Timing(9.0, [4.0, 6.0], [4.0, 6.0]), "accelaes": Timing(5.0, [2.0, 4.0], [2.0, 4.0])}
    dense, sparse = (run.profile(timings, T) for run in runs)
    assert sparse.plan == "DDDDDD.b.D.b" and dense.plan == "D" * T
    n, N = step.contract.buckets[1], step.contract.tokens
    flops = manifest.geometry.bucket_flops
    cost = (7 * flops[N] + 2 * flops[n]) / flops[N]
    assert sparse.flop_cost == pytest.approx(cost) and sparse.flop_limit == pytest.approx(T / cost)
    assert dense.flop_limit == 1.0
    assert sparse.dense_over_this is not None and sparse.dense_over_this.median == pytest.approx(1.75)
    assert sparse.of_limit == pytest.approx(1.75 / (T / cost))
    assert (sparse.images, sparse.first_seconds, sparse.images_per_second) == (3, 5.0, 1.0)
    assert sparse.engine_calls == 3 * 9 and dense.engine_calls == 3 * T
    assert [(k.kind, k.n, k.count) for k in sparse.kinds] == [("DENSE", N, 7), ("SPARSE", n, 2), ("SKIP", 0, 3)]
    assert sparse.settings["skip_ratio"] == 0.5


def test_without_dense_nothing_is_compared() -> None:
    manifest, _, step = tiny("sd3")
    run = PolicyRun(
        "stepcache", StepCache(), EagerSession(step), manifest, DenoiseProblem(manifest, 1, T, CPU), spans()
    )
    run()
    run.keep()
    found = run.profile({"stepcache": Timing(1.0, [1.0], [1.0])}, T)
    assert found.dense_over_this is None and found.of_limit is None
    assert found.flop_limit == pytest.approx(T / 9)  # DDDDD.D.D.DD


def hand_made() -> list[tuple[Span, ...]]:
    """Two runs of a dense step (4 s, engine 3 s) and a skipped one (.5 s), with 1 s of loop between."""
    run = (
        Span(RUN, "p", 0, 5.5),
        Span(STEP, "0", 0, 4, {"index": 0}),
        Span(ENGINE, "n = 16", 0.5, 3, {"n": 16}),
        Span(STEP, "1", 5, 0.5, {"index": 1}),
    )
    return [run, run]


RECORDS = [StepRecord(0, StepKind.DENSE, 16, 4.0), StepRecord(1, StepKind.SKIP, 0, 0.5)]


def test_what_a_run_spends_outside_the_engine() -> None:
    found = runtime(
        hand_made(), Timing(0.0, [5.5, 5.5], [0.2, 0.4]), dense_step=4.0, host_waits=0, graphs=GraphUse(0, 9)
    )
    assert found.seconds_per_step.median == pytest.approx((4 + 0.5 - 3) / 2)
    assert found.of_dense_step == pytest.approx(0.75 / 4)
    assert found.loop_seconds_per_step.median == pytest.approx(0.5)
    assert found.host_seconds.median == pytest.approx(0.3)
    assert (found.graphs_captured, found.graphs_replayed) == (0, 9)


def test_step_times_by_kind() -> None:
    dense, skip = step_kinds(RECORDS, hand_made())
    assert (dense.kind, dense.n, dense.count, dense.seconds.median, dense.seconds.count) == ("DENSE", 16, 1, 4, 2)
    assert (skip.kind, skip.n, skip.count, skip.seconds.median) == ("SKIP", 0, 1, 0.5)


def test_a_skipped_step_costs_no_flops() -> None:
    report = RunReport(Plan("D.a", (0.25,)), 16, [*RECORDS, StepRecord(2, StepKind.SPARSE, 4, 1.0)])
    geometry = SimpleNamespace(bucket_flops={4: 300, 16: 1000}, range_flops=(), layerwise=None)
    assert flop_cost(report, geometry) == pytest.approx(1.3)


def test_policies_never_make_the_host_wait_and_the_counter_sees_who_does() -> None:
    manifest, _, step = tiny("sd3")

    class Silent(EagerSession):  # the engine itself is no part of the count
        def run(self, inputs, outputs, workspace=None):
            for tensor in outputs.values():
                tensor.fill_(1.0)

    problem = DenoiseProblem(manifest, 1, T, CPU)
    run = PolicyRun("accelaes", AccelAes(), Silent(step), manifest, problem, spans())
    assert run.host_waits() == 0
    with HostWaits(CPU) as waits:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert waits.count == 2
