"""CUDA graphs of runs, counted on a stand-in for CUDA: what a run captured, every later one replays."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accelaes_export.backends.aoti.session import AotiSession
from accelaes_export.backends.joined import joined
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.layerwise import layerwise_contract
from accelaes_export.graph.ranges import contract_without
from accelaes_export.policies import DiffSparse, LayerSchedule, named, registry
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL, Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.backends import stand_in_tensorrt as stand_in
from tests.families import FAMILIES
from tests.thorough import thorough_but

BUCKETS = (0.25, 0.5, 0.75)
FRACTIONS = (*BUCKETS, 1.0)
POLICIES = [(name, {}) for name in registry.names() if name != "diffsparse"] + [
    ("drift", {"cache_reach": 1.0}),
    ("accelaes", {"refresh_every": 0}),
    ("ras", {"mask_share": 0.25}),
]
SHARES = {"fewer-steps": {"budget": 20}}


class Package:
    """Stands for a compiled package: the eager focus step, its outputs new tensors at every call."""

    def __init__(self, step: FocusStep) -> None:
        self._step = step
        self._lock = threading.Lock()

    def run(self, inputs):
        with self._lock, torch.no_grad():
            return [output.clone() for output in self._step(tuple(inputs))]


def session_of(family, *, graphs=True, form="token", batch=1):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    step = tiny.step(tiny.model(variant), variant, form=form, batch=batch, ranges=((0, 1),), ranking="norm")
    contracts = [contract_without(step.contract, blocks) for blocks in step.contract.ranges]
    contracts.append(layerwise_contract(step.contract))
    without = [FocusStep(tiny.model(variant), tiny.backbone, c, step.latents, ()).eval() for c in contracts]
    cuda = stand_in.Cuda(relaunches=True)

    def opened(one):
        packages = dict.fromkeys(one.contract.buckets, Package(one))
        return AotiSession(packages, one.contract, cuda.device, cuda, cuda_graphs=graphs)

    return joined(opened(step), [opened(one) for one in without]), step.latents, tiny.backbone.guidance, cuda


def denoise(denoiser, policy, T, seed=0, images=1):
    contract, guidance = denoiser.session.contract, denoiser.guidance
    plan = policy.plan(T, BUCKETS, contract.shares)
    weights = torch.rand(images, contract.text_tokens) if contract.text_tokens else None
    denoiser.start(Run(policy, plan, [float(i) for i in range(len(plan))], weights))
    branches = (CONDITIONAL, UNCONDITIONAL) if guidance.layout == "separate" else (CONDITIONAL,)
    found = []
    for i in range(len(plan)):
        for k, branch in enumerate(branches):
            B = 2 * images if guidance.pairs else images
            inputs = example_inputs(contract, contract.tokens, B=B, seed=100 * seed + 10 * k + i)
            conditioning = {name: inputs[name] for name in contract.conditioning}
            now = StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, guidance.pairs)
            found.append(denoiser.step(i, now, branch=branch).clone())
    return torch.cat(found), denoiser.report().graphs


def possible(name, options, contract):
    policy = named(name, **{**SHARES.get(name, {}), **options})
    if policy.affinity_steps(policy.plan(12, BUCKETS, contract.shares)) and "affinity" not in contract.has:
        return None
    return policy


@pytest.mark.parametrize("family", thorough_but(["sd3", "wan"], FAMILIES))
def test_later_runs_of_any_policy_capture_nothing_whatever_the_number_of_steps(family):
    session, latents, guidance, cuda = session_of(family)
    plain, *_ = session_of(family, graphs=False)
    denoiser, reference = (Denoiser(one, latents, FRACTIONS, guidance) for one in (session, plain))
    # All policies where both calls of a pair are one and where they are two; the others differ in the graph alone.
    for name, options in POLICIES if family in ("sd3", "qwen-image") else POLICIES[1:4]:
        policy = possible(name, options, session.contract)
        if policy is None:
            continue
        denoise(denoiser, policy, 12)
        before = len(cuda.captured)
        for seed, T in enumerate((12, 9, 17), start=1):
            torch.manual_seed(seed)
            found, graphs = denoise(denoiser, policy, T, seed)
            torch.manual_seed(seed)
            wanted, none = denoise(reference, policy, T, seed)
            assert torch.equal(found, wanted), (name, T)
            assert (graphs.captured, none.captured, none.replayed) == (0, 0, 0), (name, T)
            assert graphs.replayed > 0
        assert len(cuda.captured) == before, name


@pytest.mark.parametrize("family", ["sd3", "qwen-image"])
def test_layer_wise_steps_replay_a_graph_for_every_row_of_their_schedule(family):
    session, latents, guidance, cuda = session_of(family)
    plain, *_ = session_of(family, graphs=False)
    parts = session.contract.layerwise.labels
    rows = [[(0, 0.25, 0.5, 1)[(i + k) % 4] for k in range(len(parts))] for i in range(3)]
    policy = DiffSparse(LayerSchedule("norm", parts, ([1] * len(parts), *rows)))
    denoiser, reference = (Denoiser(one, latents, FRACTIONS, guidance) for one in (session, plain))
    denoise(denoiser, policy, 4)
    before = len(cuda.captured)
    for seed in (1, 2):
        torch.manual_seed(seed)
        found, graphs = denoise(denoiser, policy, 4, seed)
        torch.manual_seed(seed)
        wanted, _ = denoise(reference, policy, 4, seed)
        assert torch.equal(found, wanted)
        assert graphs.captured == 0 and graphs.replayed == 4 * (1 if guidance.pairs else 2)
    assert len(cuda.captured) == before


def test_a_first_run_replays_every_kind_of_call_it_makes_twice():
    session, latents, guidance, cuda = session_of("sd3")
    _, graphs = denoise(Denoiser(session, latents, FRACTIONS, guidance), named("accelaes"), 28)
    plan = str(named("accelaes").plan(28, BUCKETS))
    kinds = 3  # dense, dense with its affinity, sparse
    assert graphs.captured == len(cuda.captured) == kinds
    assert graphs.replayed == len(plan) - plan.count(".") - kinds


def test_a_batch_larger_than_a_calls_and_both_calls_of_a_step_have_places_of_their_own():
    for family, images in (("sd3", 3), ("qwen-image", 2)):
        session, latents, guidance, cuda = session_of(family, batch=2 if family == "sd3" else 1)
        denoiser = Denoiser(session, latents, FRACTIONS, guidance)
        denoise(denoiser, named("drift", budget=6), 12, images=images)
        before = len(cuda.captured)
        _, graphs = denoise(denoiser, named("drift", budget=6), 12, seed=1, images=images)
        assert graphs.captured == 0 and len(cuda.captured) == before


def test_a_caller_that_is_gone_leaves_its_graphs_to_the_next_one():
    session, latents, guidance, cuda = session_of("sd3")
    denoise(Denoiser(session, latents, FRACTIONS, guidance), named("accelaes"), 12)
    gc.collect()
    _, graphs = denoise(Denoiser(session, latents, FRACTIONS, guidance), named("accelaes"), 12)
    assert graphs.captured == 0
    assert ("wait", (7, 0)) in cuda.current_stream.log, "what the other one enqueued is done first"


def test_two_threads_never_share_tensors_and_capture_nothing_in_later_runs():
    session, latents, guidance, cuda = session_of("sd3")
    plain, *_ = session_of("sd3", graphs=False)
    together = threading.Barrier(2, timeout=60)
    policies = [named("accelaes"), named("drift", budget=6)]

    def work(k):
        denoiser, reference = (Denoiser(one, latents, FRACTIONS, guidance) for one in (session, plain))
        denoise(denoiser, policies[k], 12, seed=k)
        together.wait()
        before = len(cuda.captured)
        together.wait()
        for seed in range(3):
            found, graphs = denoise(denoiser, policies[k], 12, seed=10 * seed + k)
            assert graphs.captured == 0
            wanted, _ = denoise(reference, policies[k], 12, seed=10 * seed + k)
            if k == 1:  # drift's focus follows from predictions alone; accelaes' words are drawn anew
                assert torch.equal(found, wanted)
        together.wait()
        return len(cuda.captured) - before

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [0, 0]


def test_guidance_switched_off_in_mid_run_works_in_another_place_and_both_are_kept():
    session, latents, guidance, cuda = session_of("sd3")
    denoiser, policy = Denoiser(session, latents, FRACTIONS, guidance), named("stepcache")
    for turn in range(3):
        before = len(cuda.captured)
        denoiser.start(Run(policy, policy.plan(12), range(12)))
        for i in range(12):
            rows = 2 if i < 6 else 1
            inputs = example_inputs(session.contract, session.contract.tokens, B=rows, seed=i)
            conditioning = {name: inputs[name] for name in session.contract.conditioning}
            denoiser.step(i, StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, rows == 2))
        assert (len(cuda.captured) == before) == (turn > 0)


def test_a_session_keeps_few_idle_workspaces():
    session, latents, guidance, _ = session_of("sd3")
    for _ in range(3):
        many = [Denoiser(session, latents, FRACTIONS, guidance) for _ in range(6)]
        for denoiser in many:
            denoise(denoiser, named("dense"), 2)
        del many, denoiser
        gc.collect()
        assert len(session.workspaces._idle) == session.workspaces.IDLE
