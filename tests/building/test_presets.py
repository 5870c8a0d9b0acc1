"""Presets in bundles: asked for, built, shown, compared with Python, and refused where they can't be."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import accelaes_export as ax
from accelaes_export.building.builder import build
from accelaes_export.building.preset_verification import compare_preset
from accelaes_export.cli import main
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.patches import picture_of
from accelaes_export.contract.presets import Preset
from accelaes_export.contract.tensors import BACKGROUND_PREDICTION
from accelaes_export.graph.policy_export import Sizes, policy_graphs
from accelaes_export.policies import Drift, from_name, options_of
from accelaes_export.policies.programs import programs_of
from tests.eager_session import EagerSession
from tests.families import FAMILIES
from tests.tiny_sd3 import save_tiny_checkpoint, tiny_config

CONFIG = tiny_config(num_layers=1, dual_attention_layers=[])
ASKED = ["accelaes:spatial_cfg={focus: 5.0, background: 3.0}", "drift:budget=12:mask_weight=0.5", "easycache"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG)


def tiny_build(checkpoint, output, **options):
    return build(checkpoint, model="shapes", output=output, resolution=(24, 16), **options)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return tiny_build(checkpoint, tmp_path_factory.mktemp("built") / "bundle", presets=ASKED)


def test_a_preset_says_everything_a_runtime_needs(bundle):
    masked, drift, gated = bundle.manifest.geometry.presets
    assert [masked.name, drift.name, gated.name] == ASKED
    assert (masked.policy, masked.options["spatial_cfg"]) == (
        "accelaes",
        {"focus": 5.0, "background": 3.0, "softness": 0},
    )
    policy = from_name(drift.policy, drift.options)
    assert options_of(policy) == options_of(Drift(budget=12, mask_weight=0.5))
    assert drift.plans == {T: str(policy.plan(T, bundle.manifest.sparse_fractions)) for T in range(2, 101)}
    assert (drift.theta, drift.clock, drift.steps) == (policy.extrapolation.theta, "step", policy.own_steps)
    assert (masked.focus.moving, masked.focus.mask_step, masked.focus.fraction) == (False, 5, 0.5)
    assert (drift.focus.moving, drift.focus.mask_step, gated.focus) == (True, 1, None)
    assert set(masked.programs) == {
        *("advance", "advance_focus", "extrapolate", "score"),
        *("guide", "guide_by_region"),
    }
    assert {"carry", "score"} <= set(drift.programs) and {"decide", "observe"} <= set(gated.programs)
    assert set(bundle.manifest.files) >= {name for p in gated.programs.values() for name in p.files}


def test_every_preset_is_run_against_its_policy_in_python(bundle):
    result = CliRunner().invoke(main, ["verify", str(bundle.path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    assert "every bucket and preset agrees" in result.stdout and "drift:budget=12" in result.stdout


def test_a_program_that_does_something_else_is_noticed(bundle):
    preset = bundle.preset("drift:budget=12:mask_weight=0.5")
    geometry, programs = bundle.manifest.geometry, bundle.programs(preset)
    compared = compare_preset(bundle.session(), bundle.manifest, geometry, preset, programs)
    assert compared.passed and compared.focus and compared.max_rel < 1e-5

    def off(tensors):
        return {name: tensor * 1.001 for name, tensor in programs["extrapolate"](tensors).items()}

    other = compare_preset(bundle.session(), bundle.manifest, geometry, preset, {**programs, "extrapolate": off})
    assert not other.passed and other.max_rel > 1e-4

    def backwards(tensors):
        return {"score": -programs["score"](tensors)["score"]}

    other = compare_preset(bundle.session(), bundle.manifest, geometry, preset, {**programs, "score": backwards})
    assert not other.passed and other.differing


def test_a_build_whose_presets_differ_writes_nothing(checkpoint, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        found = compare_preset(*args, **kwargs)
        return type(found)(found.name, found.steps, found.plan, 0.5, found.focus, 3)

    monkeypatch.setattr("accelaes_export.building.preset_verification.compare_preset", broken)
    with pytest.raises(ax.errors.BuildError, match=r"preset teacache differs.*0\.5.*3 of 0 focus.*nothing was written"):
        tiny_build(checkpoint, tmp_path / "bundle", presets="teacache")
    assert not (tmp_path / "bundle").exists()


def test_inspect_lists_them(bundle):
    shown = CliRunner().invoke(main, ["inspect", str(bundle.path)], env={"COLUMNS": "250"}).stdout
    line = next(line for line in shown.splitlines() if "drift:budget=12:mask_weight=0.5" in line and "advance" in line)
    assert "2 to 100" in line and "score" in line


def test_a_second_build_finds_them_made(bundle, checkpoint, capsys):
    again = tiny_build(checkpoint, bundle.path.parent / "again", presets=ASKED)
    assert again.manifest.geometry.presets == bundle.manifest.geometry.presets
    assert len(list((bundle.path.parent / ".stages").glob("presets-*"))) == 1


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ("nope", "no policy 'nope'"),
        ("drift:budget=0", "preset drift:budget=0 can't run on this bundle.*budget"),
        ("drift:budgets=3", "no option 'budgets'"),
        ("drift,drift", "drift is given twice"),
        ("drift,,ras", "empty name"),
        ("delta-dit", "preset delta-dit can't run.*block-ranges"),
        ("ras:ratio=0.3", "preset ras:ratio=0.3 can't run"),
        ("drift:theta", "can't be read"),
        (3, "presets"),
        ([1], "presets"),
    ],
)
def test_what_cannot_be_a_preset_is_refused_before_anything_is_built(checkpoint, tmp_path, presets, said):
    with pytest.raises(ax.InputError, match=said):
        tiny_build(checkpoint, tmp_path / "bundle", presets=presets)
    assert not list(tmp_path.iterdir())


def test_a_preset_that_is_not_there_is_named_with_those_that_are(bundle, checkpoint, tmp_path):
    with pytest.raises(ax.InputError, match=r"no preset 'ras'; it has accelaes.*--presets ras"):
        bundle.preset("ras")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["plans"].update({"7": "DDD"}), "a plan of 3 steps for 7"),
        (lambda p: p["plans"].update({"3": "D?D"}), "a plan that is none"),
        (lambda p: p["plans"].pop(str(p["steps"])), "no plan for them"),
        (lambda p: p["programs"].pop("score"), "lacks the program score"),
        (lambda p: p["programs"]["score"]["files"].append("presets/other.onnx"), "without its hash"),
        (lambda p: p["state"][0].update(shape=["B", 3, 16]), "keeps prediction.0 otherwise"),
        (lambda p: p.update(name="easycache"), "two presets have one name"),
    ],
)
def test_a_manifest_that_contradicts_itself_about_presets_is_refused(bundle, tmp_path, change, said):
    shutil.copytree(bundle.path, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    document = json.loads(path.read_text())
    change(document["geometries"][0]["presets"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(ax.BundleError, match=said):
        ax.open(tmp_path / "bundle", check_hashes=False)


@pytest.mark.parametrize(
    ("family", "form", "policy"),
    [
        ("sd3", "component", "drift"),  # sparse steps predict all tokens
        ("flux", "token", "drift"),  # no guidance, packed latents
        ("pixart", "token", "accelaes"),  # a variance behind the prediction
        ("lumina", "token", "ras"),  # some channels are guided
        ("dit", "token", "drift"),  # no text
        ("wan", "token", "drift"),  # guidance by a second call, video
    ],
)
def test_traced_programs_do_what_python_does_in_every_kind_of_family(family, form, policy):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    step = tiny.step(tiny.model(variant), variant, form=form, batch=2)
    latents, contract, guidance = step.latents, step.contract, tiny.backbone.guidance
    options = {"drift": {"budget": 7, "cache_reach": 0.5}, "accelaes": {"mask_step": 1, "warmup": 2}}.get(policy, {})
    made = from_name(policy, options)
    picture = picture_of(latents, guidance, component=BACKGROUND_PREDICTION in contract.has)
    graphs = policy_graphs(programs_of(made, picture), Sizes(4, 2, latents.tokens, latents.token_width))

    def traced(graph):
        run, names = graph.trace().module(), [spec.name for spec in graph.outputs]

        def call(tensors):
            given = [torch.as_tensor(tensors[spec.name], dtype=torch.float32) for spec in graph.inputs]
            return {name.removesuffix("'"): t for name, t in zip(names, run(*given), strict=True)}

        return call

    fractions = tuple(n / contract.tokens for n in contract.buckets)
    manifest = SimpleNamespace(
        call=SimpleNamespace(guidance=guidance),
        bucket_fractions=fractions,
        sparse_fractions=(0.25, 0.5, 0.75),
        range_shares=(),
    )
    preset = Preset.model_construct(
        name=policy, policy=policy, options=options_of(made), steps=12,
        plans={12: str(made.plan(12, (0.25, 0.5, 0.75)))},
    )  # fmt: skip
    geometry = Geometry.model_construct(latents=latents, contract=contract)
    programs = {graph.name: traced(graph) for graph in graphs}
    compared = compare_preset(EagerSession(step), manifest, geometry, preset, programs)
    assert compared.passed and compared.focus, compared
