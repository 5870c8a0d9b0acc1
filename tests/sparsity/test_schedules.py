"""Layer-wise schedules on bundles: learned, written, read, run, measured; and what is said where one doesn't fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import accelaes_export as ax
from accelaes_export.building.verification import source_model
from accelaes_export.cli import main, tune
from accelaes_export.contract.schedules import ScheduleMethod, read_schedule
from accelaes_export.contract.tuning import Method
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense, DiffSparse, LayerSchedule
from accelaes_export.policies.layer_schedule import CANDIDATES
from accelaes_export.runtime.generate import load_pipeline
from accelaes_export.sparsity import learner
from accelaes_export.sparsity.baselines import METHODS
from accelaes_export.sparsity.student import Student
from accelaes_export.sparsity.table import Table
from accelaes_export.sparsity.training import Learning
from accelaes_export.tuning.recording import Recording, together
from accelaes_export.tuning.walk import ended
from examples.shapes.captions import heldout_prompts
from tests.shallow_shapes import save_shallow_shapes
from tests.trajectories import follows, sampled

PROMPTS = tuple(heldout_prompts(6, seed=5))
PARTS = ("0.attn", "0.ff", "1.attn", "1.ff")
T, SCALE = 4, 4.5

pytestmark = pytest.mark.xdist_group("sparsity")


def command(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, [str(argument) for argument in arguments])


def schedule(rows, ranking="similarity", parts=PARTS):
    return LayerSchedule(ranking, parts, ((1.0,) * len(parts), *rows))


MIXED = schedule([(0.5, 0.25, 0, 1), (0, 0, 0, 0), (0.75, 1, 0.25, 0.5)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_shallow_shapes(tmp_path_factory.mktemp("checkpoint") / "shapes")


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> ax.Bundle:
    folder = tmp_path_factory.mktemp("layerwise") / "shapes"
    options = f"--checkpoint {checkpoint} --layerwise similarity --presets none -o {folder}"
    result = command("build", "--model", "shapes", *options.split())
    assert result.exit_code == 0, result.stderr
    assert "layer-wise, tokens ranked by similarity" in result.stderr
    return ax.open(folder)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def file(bundle, prompts, tmp_path_factory) -> Path:
    """A schedule as `tune` writes it."""
    output = tmp_path_factory.mktemp("schedule") / "shapes.schedule.json"
    options = f"--prompts {prompts} --method diffsparse --budget 0.5 --steps {T} --iterations 6 --seed 3 -o {output}"
    result = command("tune", bundle.path, *options.split())
    assert result.exit_code == 0, result.stderr
    assert "Distance (latents) of 2 other pictures to 4 dense steps" in result.stdout and "--schedule" in result.stdout
    assert sorted(path.name for path in output.parent.iterdir()) == ["shapes.schedule.json", "shapes.schedule.png"]
    return output


@pytest.fixture(scope="module")
def pipe(bundle):
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestBundle:
    def test_says_what_it_has(self, bundle):
        manifest = bundle.manifest
        engine = manifest.geometry.layerwise
        assert manifest.geometry.contract.layerwise.labels == PARTS
        assert [(p.reference, p.passed) for p in manifest.geometry.parity[-2:]] == [
            ("diffusers, layer-wise", True),
            ("eager layer-wise step", True),
        ]
        assert engine.files == ("focus_step.onnx",) and "layerwise/focus_step.onnx" in manifest.files
        shown = command("inspect", bundle.path).stdout
        assert "ranked by similarity" in shown
        assert "diffusers, layer-wise" in command("verify", bundle.path).stdout

    def test_counts_what_its_parts_take(self, bundle):
        engine = bundle.manifest.geometry.layerwise
        N = engine.contract.tokens
        assert engine.flops_of((N,) * 4) == engine.flops
        assert engine.flops_of((N, N // 2, N, N)) == engine.flops - engine.part_flops["0.ff"].token * N / 2
        none = engine.flops_of((0,) * 4)
        assert 0.1 * engine.flops < none < 0.5 * engine.flops, "text, keys and what stands around the blocks"

    @pytest.mark.parametrize("change", ["ranking", "part", "state", "engine", "flops"])
    def test_one_that_contradicts_itself_is_refused(self, bundle, change, tmp_path):
        import shutil

        folder = tmp_path / "copy"
        shutil.copytree(bundle.path, folder)
        data = json.loads((folder / "manifest.json").read_text())
        geometry = data["geometries"][0]
        own = geometry["layerwise"]["contract"]["own_parts"]
        if change == "ranking":
            own["ranking"] = "norm"
        elif change == "part":
            for place in (own, geometry["contract"]["layerwise"]):
                place["parts"][1]["keys"] = True
        elif change == "state":
            geometry["layerwise"]["contract"]["outputs"].pop()
        elif change == "engine":
            geometry["layerwise"] = None
        else:
            del geometry["layerwise"]["part_flops"]["1.ff"]
        (folder / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(ax.BundleError, match="contradicts itself"):
            ax.open(folder)


class TestRun:
    def test_with_all_shares_one_is_dense(self, bundle, pipe):
        call = {"num_inference_steps": T, "guidance_scale": SCALE}
        ax.accelerate(pipe, bundle, Dense())
        dense = sampled(pipe, PROMPTS[0], **call)
        ax.accelerate(pipe, bundle, DiffSparse(schedule([(1,) * 4] * 3)))
        assert follows(sampled(pipe, PROMPTS[0], **call), dense)
        assert pipe.transformer.report().cost == T

    def test_a_second_run_and_pictures_beyond_a_call_are_what_they_are_alone(self, bundle, pipe):
        ax.accelerate(pipe, bundle, DiffSparse(MIXED))
        options = {"num_inference_steps": T, "guidance_scale": SCALE, "output_type": "latent"}
        generators = [torch.Generator().manual_seed(k) for k in range(3)]
        batch = pipe(list(PROMPTS[:3]), generator=generators, height=48, width=48, **options).images
        for k in (2, 0):
            alone = pipe(PROMPTS[k], generator=torch.Generator().manual_seed(k), height=48, width=48, **options).images
            torch.testing.assert_close(batch[k : k + 1], alone, rtol=1e-4, atol=1e-4)
        report = pipe.transformer.report()
        assert str(report.plan) == "D***"
        shares = [sum(row) / 4 for row in MIXED.keep]
        assert report.cost == pytest.approx(sum(shares))

    def test_unguided_too(self, bundle, pipe):
        ax.accelerate(pipe, bundle, DiffSparse(MIXED))
        found = sampled(pipe, PROMPTS[0], num_inference_steps=T, guidance_scale=1.0)
        assert torch.isfinite(found[-1]).all()

    @pytest.mark.thorough
    def test_compiled_ahead_of_time_it_draws_the_same(self, checkpoint, bundle, pipe, tmp_path):
        compiled = ax.build(
            str(checkpoint),
            model="shapes",
            backend="aoti",
            layerwise="similarity",
            output=tmp_path / "aoti",
            presets=[],
        )
        drawn = []
        for own in (bundle, compiled):
            ax.accelerate(pipe, own, DiffSparse(MIXED))
            drawn.append(sampled(pipe, PROMPTS[0], num_inference_steps=T, guidance_scale=SCALE)[-1])
        torch.testing.assert_close(*drawn, rtol=1e-3, atol=1e-3)

    def test_other_numbers_of_steps_are_refused(self, bundle, pipe):
        ax.accelerate(pipe, bundle, DiffSparse(MIXED))
        with pytest.raises(InputError, match="for runs of 4 steps, and this one has 5"):
            pipe(PROMPTS[0], num_inference_steps=5, height=48, width=48)

    def test_by_the_command_line(self, bundle, file, tmp_path):
        picture, trace = tmp_path / "a.png", tmp_path / "a.json"
        options = f"--policy diffsparse --schedule {file} -o {picture} --save-json {trace}"
        result = command("run", bundle.path, "--prompt", PROMPTS[0], *options.split())
        assert result.exit_code == 0, result.stderr
        assert "each part its own share" in result.stdout and "layered" in result.stdout
        run = json.loads(trace.read_text())
        assert run["plan"] == "D***" and run["cost_in_dense_steps"] <= 0.5 * T
        assert run["cost_in_dense_steps"] == pytest.approx(read_schedule(file).schedule.share * T)

    def test_evaluate_and_profile_show_it(self, bundle, file, prompts, tmp_path):
        label = f"diffsparse:schedule={file}"
        options = f"--prompts {prompts} --policies {label} --steps {T} --metrics psnr -o {tmp_path / 'evaluation'}"
        result = command("evaluate", bundle.path, *options.split(), "--report", tmp_path / "evaluation.html")
        assert result.exit_code == 0, result.stderr
        assert "D***" in result.stdout
        options = f"--steps {T} --policies dense,{label} --warmup-rounds 0 --iterations 1"
        result = command("profile", bundle.path, *options.split(), "--report", tmp_path / "profile.html")
        assert result.exit_code == 0, result.stderr
        assert "D***" in result.stdout

    def test_runs_load_no_training_code(self, bundle, file, tmp_path):
        code = (
            "import sys; from accelaes_export.cli import main; "
            f"main(['run', {str(bundle.path)!r}, '--prompt', 'a red star', '--policy', 'diffsparse', '--schedule', "
            f"{str(file)!r}, '-o', {str(tmp_path / 'a.png')!r}], standalone_mode=False); "
            "loaded = [m for m in sys.modules if m.startswith(('accelaes_export.sparsity', 'accelaes_export.tuning', "
            "'accelaes_export.graph', 'accelaes_export.backbones'))]; assert not loaded, loaded"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestStudent:
    def test_ends_where_the_engine_does_and_its_gradient_is_the_difference_quotient(self, bundle, pipe):
        recording = Recording(pipe, bundle, SCALE)
        schedule_, conditions = recording.schedule(PROMPTS[0], T), recording.conditions(PROMPTS[:2], seed=1)
        student = Student(bundle.manifest, source_model(bundle.manifest), schedule_, CANDIDATES, SCALE)
        chosen = np.array([[round(4 * share) for share in row] for row in MIXED.keep[1:]])
        choices = Table.of(T, 4, CANDIDATES, 1.0).one_hot(chosen)
        expected = ended(bundle, conditions, schedule_, SCALE, DiffSparse(MIXED))
        for k, one in enumerate(together(conditions, 1)):
            with torch.no_grad():
                found = student.run(one, choices)
            torch.testing.assert_close(found, expected[k : k + 1], rtol=1e-4, atol=1e-4)
        dense = ended(bundle, conditions[:1], schedule_, SCALE, Dense())
        first = together(conditions[:1], 1)[0]

        def far(choices):
            return (student.run(first, choices).double() - dense).square().sum()

        taken = choices.clone().requires_grad_(True)
        far(taken).backward()
        direction = torch.randn(choices.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            quotient = (far(choices + 1e-3 * direction) - far(choices - 1e-3 * direction)) / 2e-3
        assert (taken.grad * direction).sum().item() == pytest.approx(quotient.item(), rel=2e-2)
        student.close()


class TestLearning:
    def test_tune_offers_the_methods_that_files_may_name(self):
        (method,) = (option for option in tune.command.params if option.name == "method")
        assert list(method.type.choices) == [*get_args(Method), *get_args(ScheduleMethod)]
        assert set(METHODS) | {"diffsparse"} == set(get_args(ScheduleMethod))

    def test_keeps_the_budget_and_says_how_it_was_found(self, bundle, file):
        found = read_schedule(file)
        assert found.schedule.share <= 0.5 and found.schedule.parts == PARTS
        assert (found.method, found.distance, found.budget) == ("diffsparse", "latents", 0.5)
        assert found.weights_sha256 == bundle.manifest.source.weights_sha256
        assert found.prompts + found.held_out == len(PROMPTS)
        assert found.measured.mean > 0 and found.uniform.mean > 0

    @pytest.mark.parametrize("method", ["uniform", "random", "greedy", "evolutionary"])
    def test_every_method_writes_one(self, bundle, prompts, method, tmp_path):
        output = tmp_path / "found.json"
        options = f"--prompts {prompts} --method {method} --budget 0.4 --steps {T} --evaluations 4 -o {output}"
        result = command("tune", bundle.path, *options.split())
        assert result.exit_code == 0, result.stderr
        assert read_schedule(output).schedule.share <= 0.4

    def test_a_stopped_lesson_goes_on_to_the_same_schedule(self, bundle, monkeypatch, tmp_path):
        request = learner.SparsityRequest(PROMPTS, 0.5, steps=T, learning=Learning(iterations=9))
        whole = learner.learn(bundle, request)
        monkeypatch.setattr(learner, "_SAVED_EVERY", 0.0)
        run, calls = learner.Student.run, 0

        def stopping(self, *arguments):
            nonlocal calls
            calls += 1
            if calls == 8:
                raise KeyboardInterrupt
            return run(self, *arguments)

        monkeypatch.setattr(learner.Student, "run", stopping)
        with pytest.raises(KeyboardInterrupt):
            learner.learn(bundle, request, keep=tmp_path / "part")
        again = learner.learn(bundle, request, keep=tmp_path / "part")
        assert calls == 8 + 12 - 7, "what was done isn't done again"
        assert again.schedule == whole.schedule and again.measured == whole.measured

    def test_the_distance_of_a_network_of_ones_own(self, bundle, prompts, tmp_path):
        output = tmp_path / "found.json"
        options = f"--prompts {prompts} --method diffsparse --budget 0.5 --steps {T} --iterations 1"
        options += f" --distance examples.shapes.judge:distance -o {output}"
        result = command("tune", bundle.path, *options.split())
        assert result.exit_code == 0, result.stderr
        assert read_schedule(output).distance == "examples.shapes.judge:distance"

    def test_its_picture_is_darker_where_more_is_computed(self, file):
        found, picture = read_schedule(file).schedule, Image.open(file.with_suffix(".png"))
        dark = np.asarray(picture.convert("L"), dtype=float)
        assert dark.shape[0] > 18 * len(found.parts) and dark.shape[1] > 18 * found.steps


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("--method diffsparse --budget 0.1 --steps 4", "less than the first step"),
            ("--method diffsparse --budget 0.3,0.4", "takes one share"),
            ("--method diffsparse --budget 1.5", "at most 1"),
            ("--method diffsparse --plan DD", "--plan isn't for a layer-wise schedule"),
            ("--method diffsparse --teacher-steps 9", "--teacher-steps isn't for a layer-wise schedule"),
            ("--method diffsparse --steps 1", "number of steps is 1"),
            ("--method diffsparse --iterations 0", "iterations is 0"),
            ("--method diffsparse --distance nothing:here", "can't be imported"),
            ("--method diffsparse --distance math:pi", "isn't a function"),
            ("--method search --steps 4", "--steps isn't for drift's plans"),
            ("--method fit --distance latents", "--distance isn't for drift's plans"),
        ],
    )
    def test_by_tune(self, bundle, prompts, options, said, tmp_path):
        result = command(
            "tune", bundle.path, "--prompts", prompts, *options.split(), "-o", tmp_path / "found.schedule.json"
        )
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert not list(tmp_path.iterdir())

    def test_of_a_bundle_without_a_layer_wise_step(self, shapes_bundle, prompts, file, tmp_path):
        options = f"--prompts {prompts} --method diffsparse -o {tmp_path / 'a.json'}"
        result = command("tune", shapes_bundle.path, *options.split())
        assert result.exit_code == 2 and "build it again with --layerwise" in result.stderr
        options = f"--policy diffsparse --schedule {file} -o {tmp_path / 'a.png'}"
        result = command("run", shapes_bundle.path, "--prompt", "a", *options.split())
        assert result.exit_code == 2 and "build it again with --layerwise similarity" in result.stderr
        with pytest.raises(InputError, match="built without them"):
            pipe = load_pipeline(shapes_bundle)
            ax.accelerate(pipe, shapes_bundle, DiffSparse(MIXED))
            pipe("a", num_inference_steps=T, height=48, width=48)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"weights_sha256": "0" * 64}, "learned for other weights"),
            ({"schedule": {"ranking": "norm"}}, "tokens ranked by norm, and this bundle ranks them by similarity"),
            ({"schedule": {"parts": ["0.attn", "0.ff", "1.attn", "2.ff"]}}, "give a schedule of this model"),
            ({"schedule_version": 9}, "a schedule of version 9"),
            ({"more": 1}, "is no schedule: more"),
            ({"budget": 0}, "is no schedule: budget"),
            ({"schedule": {"keep": [[1, 1, 1, 1], [2, 1, 1, 1]]}}, "share '2.0'"),
            ({"schedule": {"keep": [[0, 1, 1, 1], [1, 1, 1, 1]]}}, "first step must compute all"),
            ({"schedule": {"keep": [[1, 1, 1, 1]]}}, "at least 2"),
            ({"schedule": {"keep": [[1, 1, 1, 1], [1, 1, 1]]}}, "3 shares for 4 parts"),
        ],
    )
    def test_of_files_that_are_for_something_else_or_nothing(self, bundle, file, change, said, tmp_path):
        data = json.loads(file.read_text())
        for name, value in change.items():
            data[name] = data[name] | value if isinstance(value, dict) else value
        other = tmp_path / "other.json"
        other.write_text(json.dumps(data))
        options = f"--policy diffsparse --schedule {other} -o {tmp_path / 'a.png'}"
        result = command("run", bundle.path, "--prompt", "a", *options.split())
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert not (tmp_path / "a.png").exists()

    def test_of_other_files_and_formats(self, bundle, tmp_path):
        options = f"--policy diffsparse --schedule {tmp_path / 'none.json'}"
        result = command("run", bundle.path, "--prompt", "a", *options.split())
        assert result.exit_code == 2 and "can't be read" in result.stderr
        result = command("run", bundle.path, "--prompt", "a", "--policy", "diffsparse")
        assert result.exit_code == 2 and "schedule" in result.stderr
        with pytest.raises(InputError, match="Layer-wise steps are for onnxruntime and aoti"):
            ax.build(model="shapes", layerwise="norm", backend="tensorrt-rtx", output=tmp_path / "rtx")
        with pytest.raises(InputError, match="give toca, similarity, norm or none"):
            ax.build(model="shapes", layerwise="attention", output=tmp_path / "other")
        with pytest.raises(InputError, match="given to a run with its schedule"):
            ax.build(model="shapes", presets=["diffsparse:schedule=found.json"], output=tmp_path / "p")
