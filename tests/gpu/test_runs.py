"""Whole runs on a GPU: no host waits, graphs from the second run on, memory that stays, threads and streams apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

import accelaes_export as ax
from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.policies import PolicyRun
from accelaes_export.measure.profiling.spans import Spans
from accelaes_export.measure.profiling.timing import stopwatch
from accelaes_export.policies import AccelAes, Dense, Drift, StepCache, named, registry
from tests.gpu.bundles import shapes
from tests.shapes_pipeline import load_shapes
from tests.trajectories import difference, sampled

PROMPT = "an intricate red star on the left, plain blue background"
T = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, device):
    return shapes(tmp_path_factory.mktemp("bundles"), device, block_ranges="0:3,3:6")


def run_of(bundle, policy, images=1):
    device, manifest = bundle.session().device, bundle.manifest
    problem = DenoiseProblem(manifest, images, policy.own_steps or T, device)
    return PolicyRun(policy, bundle.session(), manifest, problem, Spans(stopwatch(device)))


def policies():
    options = {"fewer-steps": {"budget": T}, "drift": {"budget": 8}}
    for name in registry.names():
        if name == "diffsparse":  # its schedule is for one model
            continue
        policy = named(name, **options.get(name, {}))
        if policy.gate() is None:
            yield pytest.param(policy, id=name)


@pytest.mark.parametrize("policy", list(policies()))
def test_no_policy_makes_the_host_wait_and_later_runs_only_replay(policy, bundle, device):
    run = run_of(bundle, policy)
    run()
    first = run._denoiser.report().graphs
    assert run.host_waits() == 0
    again = run._denoiser.report().graphs
    if device.type == "cuda":
        assert first.captured > 0
        assert (again.captured, again.replayed) == (0, first.captured + first.replayed)


def test_graphs_change_nothing(bundle, device):
    plain = ax.open(bundle.path, cuda_graphs=False)
    for policy in (Dense(), AccelAes(), Drift(budget=8)):
        expected = run_of(plain, policy)().clone()
        run = run_of(bundle, policy)
        for _ in range(3):
            assert torch.equal(run(), expected), policy.name


def test_memory_stays_flat_over_fifty_pictures(bundle, cuda):
    runs = [run_of(bundle, policy) for policy in (Dense(), StepCache(), AccelAes(), Drift(budget=8))]
    for run in runs * 2:
        run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for k in range(50):
        runs[k % len(runs)]()
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_two_threads_on_streams_of_their_own_disturb_nobody(bundle, device):
    policies = [AccelAes(), Drift(budget=8)]
    alone = [run_of(bundle, policy)().clone() for policy in policies]

    def work(k):
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            run = run_of(bundle, policies[k])
            found = [run().clone() for _ in range(5)]
        if stream is not None:
            stream.synchronize()
        return all(torch.equal(one, alone[k]) for one in found)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [True, True]


def test_the_drop_in_follows_stable_diffusion_3(bundle, device):
    pipe = load_shapes().to(device, torch.float16 if device.type == "cuda" else torch.float32)
    expected = sampled(pipe, PROMPT, num_inference_steps=T)
    ax.accelerate(pipe, bundle, policy=Dense())
    # Both in half precision: roundings differ, and what they grow to over the steps.
    allowed = 5e-2 if device.type == "cuda" else 1e-3
    assert difference(sampled(pipe, PROMPT, num_inference_steps=T), expected) < allowed
    pictures = [sampled(pipe, PROMPT, num_inference_steps=T)[-1] for _ in range(3)]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize("family", ["flux", "lumina"])
def test_the_drop_in_follows_flux_and_lumina(family, tmp_path, device, request):
    from tests.gpu.bundles import dtype_of, target
    from tests.runtime import test_flux_pipeline as flux
    from tests.runtime import test_lumina_pipeline as lumina

    module = {"flux": flux, "lumina": lumina}[family]
    folder = module.checkpoint.__wrapped__(request.getfixturevalue("tmp_path_factory"))
    half = torch.float16 if device.type == "cuda" else torch.float32
    options = {"backend": "aoti", "targets": target(device), "dtype": dtype_of(device), "affinity_layers": 1}
    if family == "flux":
        from diffusers import FluxPipeline

        from accelaes_export import recipes

        text = [{"tokenizers": ["tokenizer_2"], "length": 24}]
        recipe = recipes.load("flux-dev").override(vae_scale=2, text=text, steps=8, policy={"name": "stepcache"})
        size = (flux.HEIGHT, flux.WIDTH)
        bundle = ax.build(folder, model=recipe, output=tmp_path / "bundle", resolution=size, **options)
        pipe = FluxPipeline.from_pretrained(folder, torch_dtype=half).to(device)
    else:
        from diffusers import LuminaPipeline

        bundle = ax.build(folder, model="lumina-next", output=tmp_path / "bundle", resolution=(96, 64), **options)
        pipe = LuminaPipeline.from_pretrained(folder, torch_dtype=half).to(device)
    pipe.set_progress_bar_config(disable=True)
    expected = module.sample(pipe)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert difference(module.sample(pipe), expected) < (5e-2 if device.type == "cuda" else 1e-3)
