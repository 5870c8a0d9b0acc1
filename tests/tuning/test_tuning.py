"""Tuning a bundle: what its pipeline does is recorded, plans are fitted, and bundles built with them do better."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DPMSolverMultistepScheduler

import accelaes_export as ax
from accelaes_export.building.builder import build
from accelaes_export.cli import main
from accelaes_export.contract.tuning import read_tuning
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense, Drift, Plan
from accelaes_export.policies.plan_quality import bracketed, said
from accelaes_export.progress import Silent
from accelaes_export.runtime.generate import call_arguments, load_pipeline
from accelaes_export.runtime.policy_choice import policy_for, policy_of_quality
from accelaes_export.tuning.recording import Recording
from accelaes_export.tuning.search import SLACK
from accelaes_export.tuning.tuner import TuningRequest, tune
from accelaes_export.tuning.walk import Teacher, Walk, ended, taught
from examples.shapes.captions import heldout_prompts

SCALE, BUDGET, T = 4.5, 8, 14
PROMPTS = tuple(heldout_prompts(12, seed=5))

pytestmark = pytest.mark.xdist_group("tuning")


@pytest.fixture(scope="module")
def pipe(shapes_bundle):
    pipe = load_pipeline(shapes_bundle)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def request_():
    return TuningRequest(PROMPTS, (BUDGET,), seed=3, teacher_steps=40, method="fit")


@pytest.fixture(scope="module")
def tuning(shapes_bundle, request_):
    return tune(shapes_bundle, request_)


@pytest.fixture(scope="module")
def file(tuning, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuning") / "shapes.tuning.json"
    path.write_text(tuning.model_dump_json(indent=1))
    return path


@pytest.fixture(scope="module")
def tuned(file, tmp_path_factory):
    return build(model="shapes", tuning=file, output=tmp_path_factory.mktemp("tuned") / "bundle", presets=[])


def by_pipeline(pipe, bundle, policy, steps, prompt, seed):
    """Latents at the end of the pipeline's own run."""
    ax.accelerate(pipe, bundle, policy)
    arguments = call_arguments(pipe, bundle.manifest, prompt, steps=steps, guidance=SCALE, seed=seed)
    return pipe(**arguments | {"output_type": "latent"}).images


@pytest.mark.parametrize("policy", [Dense(), Drift(budget=BUDGET)], ids=["dense", "drift"])
def test_a_walk_is_the_pipelines_own_run(pipe, shapes_bundle, policy):
    recording = Recording(pipe, shapes_bundle, SCALE)
    schedule, conditions = recording.schedule(PROMPTS[0], T), recording.conditions(PROMPTS[:3], seed=7)
    found = ended(shapes_bundle, conditions, schedule, SCALE, policy)
    for k, prompt in enumerate(PROMPTS[:3]):
        wanted = by_pipeline(pipe, shapes_bundle, policy, T, prompt, seed=7 + k)
        assert torch.allclose(found[k : k + 1], wanted, atol=1e-4)


def test_the_teacher_is_where_a_dense_run_is_and_on_the_line_between_its_steps(pipe, shapes_bundle):
    recording = Recording(pipe, shapes_bundle, SCALE)
    schedule, conditions = recording.schedule(PROMPTS[0], 6), recording.conditions(PROMPTS[:2], seed=0)
    states = list(Walk(shapes_bundle, conditions, schedule, SCALE).carried_out(Dense()))
    sigmas = schedule.sigmas
    between = 0.25 * sigmas[3] + 0.75 * sigmas[2]
    start = torch.cat([own.latents for own in conditions])
    teacher = Teacher(sigmas, (start, *taught(shapes_bundle, conditions, schedule, SCALE, None)))
    for sigma, wanted in zip(sigmas, (start, *states), strict=True):
        assert torch.equal(teacher.at(sigma), wanted)
    assert torch.allclose(teacher.at(between), 0.75 * states[1] + 0.25 * states[2], atol=1e-5)
    assert torch.equal(teacher.at(sigmas[0] + 1), start) and torch.equal(teacher.at(-1.0), states[-1])
    assert torch.equal(teacher.of(slice(1, 2)).at(between), teacher.at(between)[1:])


def test_pictures_of_latents_are_the_pipelines_own(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, Dense())
    arguments = call_arguments(pipe, shapes_bundle.manifest, PROMPTS[0], steps=4, guidance=SCALE, seed=1)
    latents = pipe(**arguments | {"output_type": "latent"}).images
    wanted = pipe(**arguments | {"generator": torch.Generator().manual_seed(1), "output_type": "np"}).images[0]
    (found,) = Recording(pipe, shapes_bundle, SCALE).pictures(latents, PROMPTS[1])
    assert abs(found - wanted).max() < 1e-4


class _Stopping(Silent):
    """Interrupts the work at the beginning of a stage, the `k`-th of its name; remembers all that began."""

    def __init__(self, name: str = "", k: int = 0) -> None:
        self.began: list[str] = []
        self._name, self._k = name, k

    @contextmanager
    def stage(self, name, detail=""):
        self.began.append(name)
        if name == self._name and self.began.count(name) == self._k:
            raise KeyboardInterrupt
        yield self


def test_an_interrupted_tuning_goes_on_and_ends_as_an_uninterrupted_one(shapes_bundle, tmp_path):
    request = TuningRequest(PROMPTS[:4], plans=("DD.D", "DDb.D."), seed=3, teacher_steps=16)
    with pytest.raises(KeyboardInterrupt):
        tune(shapes_bundle, request, _Stopping("fit", 2), keep=tmp_path / "kept")
    kept = sorted(path.name.partition("-")[0] for path in (tmp_path / "kept").iterdir())
    # Dense runs, one plan, and every picture of the teacher's, as the batch is 1.
    assert kept == ["dense", "dense", "plan", *["teacher"] * 4]
    damaged = next((tmp_path / "kept").glob("teacher-*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = _Stopping()
    found = tune(shapes_bundle, request, again, keep=tmp_path / "kept")
    assert again.began.count("fit") == 1
    assert found == tune(shapes_bundle, request)
    other = _Stopping()
    tune(shapes_bundle, replace(request, seed=4), other, keep=tmp_path / "kept")  # shares nothing but the folder
    assert other.began.count("fit") == 2


def test_a_searched_plan_ends_nearer_than_the_one_it_began_with(shapes_bundle):
    request = TuningRequest(PROMPTS[:8], (6,), seed=3, teacher_steps=30, evaluations=9)
    found = tune(shapes_bundle, request)
    plan = found.plans[6]
    assert (found.method, found.evaluations) == ("search", 9)
    assert 6 - SLACK <= Plan(plan.schedule.symbols, found.buckets).cost <= 6
    assert plan.schedule.symbols != str(Drift(budget=6).plan(10, found.buckets))
    assert plan.measured.after < plan.measured.before


def test_plans_that_are_given_are_fitted_as_they_are(shapes_bundle):
    found = tune(shapes_bundle, TuningRequest(PROMPTS[:6], plans=("DDDDD", "DDbb.D"), seed=3, teacher_steps=20))
    assert {budget: plan.schedule.symbols for budget, plan in found.plans.items()} == {4: "DDbb.D", 5: "DDDDD"}
    assert found.method == "fit" and all(plan.measured.after < plan.measured.before for plan in found.plans.values())


def test_fitted_plans_end_nearer_to_the_teacher_on_pictures_they_have_not_seen(tuning):
    plan = tuning.plans[BUDGET]
    assert (tuning.prompts, tuning.held_out) == (9, 3)
    assert plan.schedule.symbols == str(Drift(budget=BUDGET).plan(T, tuning.buckets))
    assert plan.measured.after < 0.95 * plan.measured.before
    # Every class of a step has its weights; later steps have more of them.
    assert len(plan.schedule.coefficients.steps) == T and len(plan.schedule.coefficients.steps[-1]) > 3


def test_what_is_measured_is_what_a_bundle_built_with_it_draws(tuning, tuned, pipe, request_):
    policy = policy_for(tuned.manifest, "drift", {"budget": BUDGET})
    assert policy.extrapolation.coefficients == tuning.plans[BUDGET].schedule.coefficients
    recording = Recording(pipe, tuned, SCALE)
    held_out = slice(request_.fitted_on, None)
    conditions = recording.conditions(PROMPTS, request_.seed)[held_out]
    found = [
        by_pipeline(pipe, tuned, policy, T, prompt, request_.seed + request_.fitted_on + k)
        for k, prompt in enumerate(PROMPTS[held_out])
    ]
    teacher = taught(tuned, conditions, recording.schedule(PROMPTS[0], 40), SCALE, None)
    errors = (torch.cat(found) - teacher[-1]).square().flatten(1).mean(dim=1)
    measured = tuning.plans[BUDGET].measured
    assert errors.mean().sqrt().item() == pytest.approx(measured.after, rel=1e-3)
    assert errors.max().sqrt().item() == pytest.approx(measured.worst_after, rel=1e-3)


def test_the_quality_of_a_plan_is_that_of_the_pictures_it_draws(tuning, pipe, tuned, request_):
    quality = tuning.plans[BUDGET].schedule.quality
    assert (quality.pictures, quality.exact_steps, quality.date) == (3, 40, tuning.date)
    held_out = [(PROMPTS[k], request_.seed + k) for k in range(request_.fitted_on, len(PROMPTS))]

    def drawn(policy, steps):
        ax.accelerate(pipe, tuned, policy)
        manifest = tuned.manifest
        arguments = [call_arguments(pipe, manifest, p, steps=steps, guidance=SCALE, seed=seed) for p, seed in held_out]
        return np.stack([pipe(**own | {"output_type": "np"}).images[0] for own in arguments])

    exact, dense, own = drawn(Dense(), 40), drawn(Dense(), 28), drawn(policy_of_quality(tuned.manifest, "fast"), T)
    assert quality.psnr[0] == pytest.approx(-10 * np.log10(np.square(own - exact).mean()), abs=0.01)
    assert quality.psnr_to_dense[0] == pytest.approx(-10 * np.log10(np.square(own - dense).mean()), abs=0.01)
    assert quality.worst == pytest.approx(-10 * np.log10(np.square(own - exact).mean(axis=(1, 2, 3)).max()), abs=0.01)
    assert 7 < quality.dense_steps[0] < 28


def test_a_quality_takes_the_measured_plan_or_dense_and_is_shown(tuning, tuned, pipe, tmp_path):
    manifest = tuned.manifest
    fast, high = (policy_of_quality(manifest, level) for level in ("fast", "high"))
    assert fast == policy_for(manifest, "drift", {"budget": BUDGET}) and high == Dense()
    assert ax.accelerate(pipe, tuned, quality="fast").transformer.served[0].policy == fast
    with pytest.raises(InputError, match="quality fast was given beside policy dense"):
        ax.accelerate(pipe, tuned, "dense", quality="fast")
    with pytest.raises(InputError, match="quality best|quality is 'best'; allowed are high, balanced, fast"):
        ax.accelerate(pipe, tuned, quality="best")
    words = ["run", str(tuned.path), "--prompt", PROMPTS[0], "-o", str(tmp_path / "fast.png")]
    result = CliRunner().invoke(main, [*words, "--quality", "fast"])
    assert result.exit_code == 0, result.stderr
    assert f"Plan of drift, {T} steps" in result.stdout
    assert f"This plan is {said(tuning.plans[BUDGET].schedule.quality)}." in result.stdout
    for more in (["--policy", "dense"], ["--steps", "9"], ["--budget", "8"]):
        refused = CliRunner().invoke(main, [*words, "--quality", "fast", *more])
        assert refused.exit_code == 2 and "--quality chooses the policy" in refused.stderr
    shown = CliRunner().invoke(main, ["inspect", str(tuned.path)], env={"COLUMNS": "200"})
    assert bracketed(tuning.plans[BUDGET].schedule.quality.dense_steps) in shown.stdout
    assert "not measured" in shown.stdout  # the other budgets
    profiled = CliRunner().invoke(
        main, ["profile", str(tuned.path), "--policies", "dense,drift:budget=8", "--iterations", "1"]
    )
    assert profiled.exit_code == 0, profiled.stderr
    assert "Plan of drift:budget=8, 14 steps; quality: as near to exact" in " ".join(profiled.stdout.split())


def test_a_bundle_that_was_not_measured_promises_nothing(shapes_bundle, tmp_path):
    words = ["run", str(shapes_bundle.path), "--prompt", PROMPTS[0], "-o", str(tmp_path / "a.png")]
    result = CliRunner().invoke(main, [*words, "--quality", "fast"])
    assert result.exit_code == 2 and "No plan of this bundle was measured" in result.stderr
    assert not (tmp_path / "a.png").exists()


def test_tuning_a_tuned_bundle_begins_with_its_plan_and_not_with_its_coefficients(tuned, shapes_bundle):
    request = TuningRequest(PROMPTS[:4], (BUDGET,), seed=3, teacher_steps=16, method="fit")
    again, first = (tune(bundle, request).plans[BUDGET] for bundle in (tuned, shapes_bundle))
    assert again.measured == first.measured and again.schedule == first.schedule


def test_a_tuning_of_other_weights_or_sizes_is_refused_unless_it_is_taken_anyway(file, tmp_path):
    data = json.loads(file.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"was made on the weights 000000000000 of shapes.*--tuning-anyway"):
        build(model="shapes", tuning=other, output=tmp_path / "a")
    with pytest.raises(InputError, match=r"was made on pictures of 48 x 48, and this build is of 96 x 48"):
        build(model="shapes", tuning=file, output=tmp_path / "a", resolution="96x48")
    with pytest.raises(InputError, match=r"0\.5"):
        build(model="shapes", tuning=file, output=tmp_path / "a", buckets="0.25,0.75")
    assert not (tmp_path / "a").exists()
    bundle = build(model="shapes", tuning=other, tuning_anyway=True, output=tmp_path / "a", presets=[])
    plan = bundle.manifest.defaults.plans[BUDGET]
    assert plan.coefficients is not None and plan.quality is None  # nothing was measured on these weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("plans"), "plans: Field required"),
        (lambda d: d.update(more=1), "more: Extra inputs"),
        (lambda d: d.update(plans={}), "plans"),
        (lambda d: d.update(tuning_version=2), "version 2, and this release reads 1"),
        (lambda d: d["plans"]["8.0"]["schedule"].update(symbols="DD"), "coefficients are of 14 steps, but the plan DD"),
        (lambda d: d["plans"]["8.0"]["schedule"]["coefficients"].update(guidance=-1), "guidance is -1"),
        (lambda d: d["plans"]["8.0"]["measured"].update(after=-1), "after"),
        (lambda d: d["plans"]["8.0"]["schedule"]["quality"].update(pictures=0), "at least one picture"),
        (lambda d: d["plans"]["8.0"]["schedule"]["quality"].pop("worst"), "worst: Field required"),
        (lambda d: d.update(method="guess"), "method"),
    ],
)
def test_a_file_that_is_no_tuning_is_refused_in_a_sentence(file, tmp_path, change, said):
    data = json.loads(file.read_text())
    change(data)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=said):
        read_tuning(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_file_that_holds_something_else_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match="is no tuning: the whole file"):
        read_tuning(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": PROMPTS[:3]}, "3 prompts were given, and tuning needs 4"),
        ({"budgets": ()}, "Give budgets"),
        ({"plans": ("DDDD",)}, "Give budgets"),
        ({"budgets": (), "plans": ("DDDD", "DDDbb")}, "DDDD and DDDbb both cost 4"),
        ({"budgets": (), "plans": ("DxD",)}, "Step 1 of the plan is 'x'"),
        ({"budgets": (), "plans": ("D",)}, "'D' is too short; a plan has at least two steps"),
        ({"budgets": (), "plans": (".D",)}, "first step must be D"),
        ({"method": "dp"}, "The method is 'dp'; allowed are search, fit"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"held_out": 0.0}, "share held out is 0.0"),
        ({"seed": -1}, "seed"),
        ({"guidance": float("nan")}, "guidance"),
        ({"teacher_steps": T}, "The teacher has 14 steps, and the plan for budget 8 has 14"),
        ({"budgets": (0.5,)}, "budget is 0.5"),
    ],
)
def test_what_cant_be_tuned_is_said_before_anything_is_loaded(shapes_bundle, changes, said):
    given = {"prompts": PROMPTS, "budgets": (BUDGET,)} | changes
    with pytest.raises(InputError, match=said):
        tune(shapes_bundle, TuningRequest(**given))


def test_a_scheduler_that_goes_otherwise_is_refused(pipe, shapes_bundle):
    ours = pipe.scheduler
    try:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            ours.config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )
        with pytest.raises(InputError, match="DPMSolverMultistepScheduler as it is set moves otherwise"):
            Recording(pipe, shapes_bundle, SCALE).schedule(PROMPTS[0], 6)
    finally:
        pipe.scheduler = ours


def test_the_verb_writes_a_file_that_build_takes(shapes_bundle, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "shapes.tuning.json"
    prompts.write_text("\n".join(PROMPTS[:4]) + "\n")
    words = ["tune", str(shapes_bundle.path), "--prompts", str(prompts), "--teacher-steps", "16", "-o", str(output)]
    result = CliRunner().invoke(main, [*words, "--budgets", "4,6", "--evaluations", "3"])
    assert result.exit_code == 0, result.stderr
    assert (
        "Distance of 1 held-out picture to 16 dense steps" in result.stdout
        and "Next: accelaes-export build" in result.stdout
    )
    assert sorted(read_tuning(output).plans) == [4, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [prompts.name, output.name]
    for budgets, sentence in (("8,8", "Budget 8.0 is given twice"), ("none", "--budgets has 'none'"), ("0", "has '0'")):
        result = CliRunner().invoke(main, [*words, "--budgets", budgets])
        assert result.exit_code == 2 and sentence in result.stderr
    built = CliRunner().invoke(main, ["build", "--model", "shapes", "--tuning", str(output), "-o", str(tmp_path / "b")])
    assert built.exit_code == 0, built.stderr
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "b")])
    assert "learned" in shown.stdout
    missing = CliRunner().invoke(main, ["build", "--model", "shapes", "--tuning", str(tmp_path / "none.json")])
    assert missing.exit_code == 2 and "none.json can't be read" in missing.stderr
