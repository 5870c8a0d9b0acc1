"""The native runtime's runs are Python's: the same latents, and every focus token."""

from __future__ import annotations

import gc
import resource
import shutil
import threading

import numpy as np
import pytest
import torch

import accelaes_export as ax
from accelaes_export.policies import from_name
from tests.native.building import ONNXRUNTIME
from tests.native.conftest import PRESETS, REGIONS
from tests.native.library import NativeBundle
from tests.native.reference import Setting, setting, walk
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import PROMPT

pytestmark = pytest.mark.xdist_group("native")


def run_of(opened: NativeBundle, given: Setting):
    run = opened.run(
        given.sigmas,
        given.timesteps,
        preset=given.preset.name.encode(),
        plan=given.plan.encode(),
        images=given.images,
        unguided=not given.guided,
        guidance=given.scale,
    )
    run.input(**given.inputs)
    return run


def carried_out(opened: NativeBundle, given: Setting) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Symbol, latents and focus of every step."""
    run, steps, more = run_of(opened, given), [], True
    while more:
        step, more = run.next()
        symbol = step.symbol.decode()
        steps.append((symbol, run.latents(), run.focus(given.images) if symbol >= "a" else None))
    run.free()
    return steps


def require_same(bundle, opened, given: Setting) -> str:
    """The plan as it was carried out; AssertionError where the two runs part."""
    found = carried_out(opened, given)
    for i, (wanted, focus) in enumerate(walk(bundle, given)):
        symbol, latents, own = found[i]
        largest = max(1.0, np.abs(wanted).max())
        assert np.abs(latents - wanted.ravel()).max() <= 1e-4 * largest, (given.preset.name, given.plan, i)
        assert (focus is None) == (own is None), (i, symbol)
        assert own is None or np.array_equal(own, focus), (given.preset.name, given.plan, i)
    return "".join(symbol for symbol, _, _ in found)


@pytest.mark.parametrize("name", PRESETS)
def test_a_prompts_latents_are_the_pipelines_own(opened, bundle, name, monkeypatch):
    """From what diffusers hands the transformer: text embeddings, noise, sigmas; α as words.py finds it."""
    from accelaes_export.runtime import denoiser

    seen, step = {}, denoiser.Denoiser.step

    def watched(self, i, now, *, branch=denoiser.CONDITIONAL):
        if i == 0:
            seen.update(latents=now.hidden_states[:1].clone(), conditioning=dict(now.conditioning), timesteps=[])
            seen["alpha"] = self._run.token_weights
        seen["timesteps"].append(float(now.timestep[0]))
        return step(self, i, now, branch=branch)

    monkeypatch.setattr(denoiser.Denoiser, "step", watched)
    preset, pipe, latents = bundle.preset(name), load_shapes(), []
    pipe.set_progress_bar_config(disable=True)
    ax.accelerate(pipe, bundle, from_name(preset.policy, preset.options))

    def after(_, i, t, kwargs):
        latents.append(kwargs["latents"].numpy().copy())
        return kwargs

    pipe(
        PROMPT, num_inference_steps=preset.steps, guidance_scale=4.5, max_sequence_length=8, output_type="latent",
        generator=torch.Generator().manual_seed(3), callback_on_step_end=after,
    )  # fmt: skip
    inputs = {"latents": seen["latents"].numpy(), **{n: t.numpy() for n, t in seen["conditioning"].items()}}
    if seen["alpha"] is not None:
        inputs["token_weights"] = seen["alpha"].numpy()
    run = opened.run(pipe.scheduler.sigmas.numpy(), np.array(seen["timesteps"]), preset=name.encode(), guidance=4.5)
    run.input(**inputs)
    plan = ""
    for wanted in latents:
        own, more = run.next()
        plan += own.symbol.decode()
        assert np.abs(run.latents() - wanted.ravel()).max() < 1e-4, plan
    report = pipe.transformer.report()
    assert not more and plan == str(report.plan)
    if report.focus_index is not None and any(symbol in "abc" for symbol in plan):
        assert np.array_equal(run.focus(), report.focus_index.numpy())
    run.free()


def test_eight_threads_on_one_bundle_draw_what_one_does_bit_for_bit(opened, bundle):
    settings = [setting(bundle, bundle.preset(PRESETS[k % 7]), "DDDDDD.D", seed=k) for k in range(8)]
    alone = [carried_out(opened, given)[-1][1] for given in settings]
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        found[k] = carried_out(opened, settings[k])[-1][1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[k], alone[k]) for k in range(8))


def test_a_run_can_be_cancelled_and_given_other_input(opened, bundle):
    given = setting(bundle, bundle.preset("drift:budget=12"), "DDDa.b", seed=1)
    run = run_of(opened, given)
    run.next()
    run.cancel()
    with pytest.raises(Exception, match="cancelled before step 1") as raised:
        run.next()
    assert raised.value.code == 1
    run.input(**given.inputs)
    for _, wanted, _ in carried_out(opened, given):
        run.next()
        assert np.array_equal(run.latents(), wanted), "the next run knows nothing of the cancelled one"
    run.free()


def test_memory_stays_flat_over_many_runs(opened, bundle):
    given = setting(bundle, bundle.preset(REGIONS), "DDDDDD.b", seed=2)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for _ in range(5):
        carried_out(opened, given)
    gc.collect()
    before = peak()
    for _ in range(40):
        carried_out(opened, given)
    assert peak() - before < 4_000, "kilobytes"


def test_a_bundle_may_be_closed_while_its_runs_go_on(native, opened, bundle):
    given = setting(bundle, bundle.preset("dense"), "DDD", seed=4)
    own = native.open(bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)
    run = run_of(own, given)
    own.close()
    for _, wanted, _ in carried_out(opened, given):
        run.next()
        assert np.array_equal(run.latents(), wanted)
    run.free()


def test_encoders_are_opened_by_whoever_gives_a_prompt_alone(native, bundle, tmp_path):
    """They may be many times as large as the engine."""
    shutil.copytree(bundle.path, tmp_path / "bundle")
    encoder = tmp_path / "bundle" / "components" / "text_encoder.onnx"
    encoder.write_bytes(b"x" * encoder.stat().st_size)
    opened = native.open(tmp_path / "bundle", library=str(ONNXRUNTIME).encode(), threads=1, skip_hashes=1)
    given = setting(bundle, bundle.preset("dense"), "DD", seed=4)
    assert carried_out(opened, given)
    run = run_of(opened, given)
    with pytest.raises(Exception, match=r"text_encoder\.onnx can't be opened\. ONNX Runtime says"):
        run.prompt("a red star")
    run.input(**given.inputs)  # and it is as it was
    assert run.next()[1]
    run.free()
