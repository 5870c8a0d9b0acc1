"""Bundles whose steps may leave blocks out: every verb, and what is said where a range or its engine isn't there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import accelaes_export as ax
from accelaes_export.backends.joined import joined
from accelaes_export.cli import main
from accelaes_export.errors import BundleError, InputError
from accelaes_export.measure.profiling.policies import flop_cost
from accelaes_export.options import parse_ranges
from accelaes_export.policies import DeltaDiT, Dense
from accelaes_export.recipes import load
from examples.shapes.evaluate import load_pipeline
from tests.native.building import ONNXRUNTIME
from tests.native.library import Native
from tests.native.reference import setting
from tests.native.test_runs import require_same
from tests.shallow_shapes import save_shallow_shapes
from tests.trajectories import follows, sampled

PROMPT = "an intricate red star on the left"


def command(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shallow_shapes(tmp_path_factory.mktemp("checkpoint") / "shapes")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranges") / "shapes"
    options = f"--checkpoint {checkpoint} --block-ranges 1:2,0:1 --presets delta-dit -o {folder}"
    result = command("build", "--model", "shapes", *options.split())
    assert result.exit_code == 0, result.stderr
    assert "without blocks 0:1" in result.stderr and "without blocks 1:2" in result.stderr
    return folder


def test_a_build_has_an_engine_for_every_range_and_measures_each(bundle: Path) -> None:
    manifest = ax.open(bundle).manifest
    assert manifest.range_shares == (0.5, 0.5)
    assert [engine.folder for engine in manifest.geometry.without] == ["without_0_1", "without_1_2"]
    assert {name for name in manifest.files if not name.startswith("presets/")} == {
        "focus_step.onnx",
        "without_0_1/focus_step.onnx",
        "without_1_2/focus_step.onnx",
        "fingerprint.json",
    }
    assert [(p.reference, p.passed, p.max_rel < 1e-5) for p in manifest.geometry.parity[-2:]] == [
        ("diffusers, blocks 0:1 left out", True, True),
        ("diffusers, blocks 1:2 left out", True, True),
    ]
    dense = manifest.geometry.bucket_flops[manifest.geometry.contract.tokens]
    # Half of the blocks, and the embeddings and projections around them.
    assert all(0.4 < flops / dense < 0.6 for flops in manifest.geometry.range_flops)


def test_verify_and_inspect_tell_of_every_range(bundle: Path) -> None:
    verified = command("verify", bundle)
    assert verified.exit_code == 0 and "blocks 1:2 left out" in verified.stdout
    shown = command("inspect", bundle, "--policy", "delta-dit").stdout
    assert "0:1 of 2" in shown and "1:2 of 2" in shown
    assert "D1D1D1D1D1 D1D1D0D0D0 D0D0D0D0" in shown and "cost 21 of 28 dense steps" in shown


def test_run_and_evaluate_leave_blocks_out(bundle: Path, tmp_path: Path) -> None:
    picture, trace = tmp_path / "star.png", tmp_path / "trace.json"
    options = f"--policy delta-dit --steps 6 -o {picture} --save-json {trace}"
    result = command("run", bundle, "--prompt", PROMPT, *options.split())
    assert result.exit_code == 0, result.stderr
    assert picture.stat().st_size > 1000 and "partial" in result.stdout
    run = json.loads(trace.read_text())
    assert (run["plan"], run["cost_in_dense_steps"]) == ("D1D0D0", 4.5)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT + "\n")
    options = f"--prompts {prompts} --policies delta-dit --steps 4 --metrics psnr -o {tmp_path / 'evaluation'}"
    evaluated = command("evaluate", bundle, *options.split(), "--report", tmp_path / "report.html")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "D1D0" in evaluated.stdout and "delta-dit" in (tmp_path / "report.html").read_text()


def test_profile_counts_what_a_partial_step_computes(bundle: Path, tmp_path: Path) -> None:
    written = tmp_path / "profile.json"
    options = f"--steps 4 --policies dense,delta-dit --warmup-rounds 0 --iterations 1 --save-json {written}"
    result = command("profile", bundle, *options.split())
    assert result.exit_code == 0, result.stderr
    dense, found = json.loads(written.read_text())["policies"]
    manifest = ax.open(bundle).manifest
    whole, (early, late) = manifest.geometry.bucket_flops[144], manifest.geometry.range_flops
    assert dense["flop_cost"] == 4 and found["plan"] == "D1D0"
    assert found["flop_cost"] == pytest.approx((2 * whole + late + early) / whole)
    assert {kind["kind"] for kind in found["kinds"]} == {"DENSE", "PARTIAL"}


def test_dense_follows_the_untouched_pipeline_and_leaving_blocks_out_comes_near_it(
    checkpoint: Path, bundle: Path
) -> None:
    pipe = load_pipeline(checkpoint)
    untouched = sampled(pipe, PROMPT, num_inference_steps=8, guidance_scale=4.5)
    opened = ax.open(bundle)
    ax.accelerate(pipe, opened, Dense())
    assert follows(sampled(pipe, PROMPT, num_inference_steps=8, guidance_scale=4.5), untouched)
    ax.accelerate(pipe, opened, DeltaDiT())
    found = sampled(pipe, PROMPT, num_inference_steps=8, guidance_scale=4.5)
    report = pipe.transformer.report()
    assert report.cost == 6
    geometry = opened.manifest.geometry
    assert flop_cost(report, geometry) == pytest.approx(6, 0.02)
    assert 0 < (found[-1] - untouched[-1]).pow(2).mean() < 0.1 * untouched[-1].pow(2).mean()


def test_a_range_engine_that_is_missing_damaged_or_unlisted_is_named(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    (folder / "without_1_2/focus_step.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks without_1_2/focus_step\.onnx"):
        ax.open(folder)
    shutil.copy(bundle / "without_0_1/focus_step.onnx", folder / "without_1_2/focus_step.onnx")
    with pytest.raises(BundleError, match="without_1_2"):
        ax.open(folder)
    shutil.copy(bundle / "without_1_2/focus_step.onnx", folder / "without_1_2/focus_step.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["geometries"][0]["without"][1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"engines without the blocks 0:1, .* changes of 0:1, 1:2"):
        ax.open(folder)


def test_a_bundle_without_ranges_says_how_to_get_them(shapes_bundle: ax.Bundle, tmp_path: Path) -> None:
    result = command("run", shapes_bundle.path, "--prompt", PROMPT, "--policy", "delta-dit", "-o", tmp_path / "a.png")
    assert result.exit_code == 2 and "build it again with --block-ranges" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = command("run", shapes_bundle.path, "--prompt", PROMPT, "--plan", "D0D", "-o", tmp_path / "a.png")
    assert result.exit_code == 2 and "built without block ranges" in result.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0:7", r"can't be left out of a model of 6 blocks.*0 <= FIRST < LAST <= 6"),
        ("0:6", "at least one block left"),
        ("3:3", "write FIRST:LAST"),
        ("3", "write FIRST:LAST"),
        ("a:b", "write FIRST:LAST"),
        ("0:3,0:3", "every range once"),
    ],
)
def test_ranges_that_can_not_be_are_refused_before_anything_is_written(given: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        ax.build(model="shapes", block_ranges=given, output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@given(
    ranges=st.sets(
        st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=10
    )
)
def test_ranges_are_read_as_they_are_written_in_any_order(ranges: set[tuple[int, int]]) -> None:
    expected = tuple(sorted(ranges))
    text = ",".join(f"{first}:{last}" for first, last in ranges) or "none"
    assert parse_ranges(text) == parse_ranges(list(ranges)) == parse_ranges(list(map(list, ranges))) == expected
    assert load("shapes").override(block_ranges=text).block_ranges == expected


def test_a_joined_session_hands_each_call_to_the_engine_it_is_for(bundle: Path) -> None:
    full = ax.open(bundle).session()
    manifest = ax.open(bundle).manifest
    assert full.contract == manifest.geometry.contract
    step = manifest.geometry.without[0]
    assert step.contract.without is not None
    inputs = {spec.name: torch.zeros(spec.sized(step.contract.sizes(144, 2))) for spec in step.contract.inputs}
    found = torch.empty(2, 144, 16)
    full.run(inputs, {"focus_prediction": found})
    assert found.isfinite().all()
    with pytest.raises(InputError, match="Missing input change"):
        full.run({name: inputs[name] for name in list(inputs)[:-1]}, {"focus_prediction": found})
    assert joined(full, []) is full


@pytest.mark.parametrize(("plan", "guided"), [(None, True), ("D1D0D01D", True), ("D10.D", False)])
def test_natively_the_same_blocks_are_left_out(bundle: Path, native: Native, plan: str | None, guided: bool) -> None:
    python, opened = ax.open(bundle), native.open(bundle, library=str(ONNXRUNTIME).encode(), threads=1)
    preset = python.preset("delta-dit")
    given = setting(python, preset, plan or preset.plans[12], seed=5, guided=guided)
    assert require_same(python, opened, given) == given.plan
    opened.close()
