"""From a checkpoint to a bundle: what is reused, what is refused, and that nothing is left half-made."""

from __future__ import annotations

import shutil

import pytest

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend
from accelaes_export.building import verification
from accelaes_export.building.builder import build
from accelaes_export.errors import OtherDeviceError
from accelaes_export.policies import DriftSchedule
from accelaes_export.progress import Silent
from tests.tiny_sd3 import save_tiny_checkpoint, tiny_config

CONFIG = tiny_config(num_layers=1, dual_attention_layers=[])  # building takes as many seconds as there are blocks


class Recorder(Silent):
    """Writes down what a build tells."""

    def __init__(self):
        self.ran, self.reused_stages, self.notes = [], [], []

    def stage(self, name, detail=""):
        self.ran.append(name)
        return super().stage(name, detail)

    def reused(self, name, detail=""):
        self.reused_stages.append(name)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG)


@pytest.fixture(scope="module")
def built(checkpoint, tmp_path_factory):
    """One finished build and its store, to be copied: exporting is what takes the time."""
    folder = tmp_path_factory.mktemp("built")
    tiny_build(checkpoint, folder / "bundle")
    return folder


@pytest.fixture
def folder(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def tiny_build(checkpoint, output, **options):
    progress = Recorder()
    options = {"model": "shapes", "presets": "none", **options}
    bundle = build(checkpoint, output=output, resolution=(24, 16), progress=progress, **options)
    return bundle, progress


def test_a_bundle_says_what_it_is_and_its_parity_was_measured(folder, checkpoint):
    manifest = ax.open(folder / "bundle").manifest
    assert (manifest.family, manifest.geometry.contract.tokens, manifest.layers) == ("sd3", 24, 1)
    assert manifest.source.location == str(checkpoint)
    assert [result.reference for result in manifest.geometry.parity] == ["eager focus step"] * 3 + ["diffusers"]
    assert all(result.passed and result.max_rel < 1e-4 for result in manifest.geometry.parity)
    assert list(manifest.geometry.bucket_flops) == list(manifest.geometry.contract.buckets)


def test_a_repeated_build_runs_no_stage_and_says_so(folder, checkpoint):
    _, progress = tiny_build(checkpoint, folder / "bundle")
    assert (progress.ran, progress.reused_stages) == ([], ["bundle"])


def test_the_same_engine_in_another_folder_reuses_every_stage(folder, checkpoint):
    _, progress = tiny_build(checkpoint, folder / "second")
    assert progress.reused_stages == ["load, trace, export", "compile"]
    assert progress.ran == ["verify", "write"]


def test_other_buckets_reuse_the_exported_graph(folder, checkpoint):
    bundle, progress = tiny_build(checkpoint, folder / "second", buckets="0.5")
    assert progress.reused_stages == ["load, trace, export"]
    assert bundle.manifest.bucket_fractions == (0.5, 1.0)


def test_other_plans_by_budget_are_written_without_compiling_again(folder, checkpoint):
    own = {7: {"symbols": "DDDbb.DbD", "theta": 0.1, "trend": 0.5, "cache_reach": 0.0}}
    recipe = recipes.load("shapes").override(plans=own)
    bundle, progress = tiny_build(checkpoint, folder / "bundle", model=recipe, force=True)
    assert progress.reused_stages == ["load, trace, export", "compile"]
    assert bundle.manifest.defaults.plans == {budget: DriftSchedule(**plan) for budget, plan in own.items()}


def test_an_edited_bundle_is_refused_when_opened_and_built_again_from_whole_stages(folder, checkpoint):
    path = folder / "bundle/focus_step.onnx"
    (stage,) = (folder / ".stages").glob("engine-*/focus_step.onnx")
    stage.unlink()
    stage.hardlink_to(path)  # as a build leaves it; copying the fixture parted them
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    with pytest.raises(ax.BundleError, match="was altered"):
        ax.open(folder / "bundle")
    bundle, progress = tiny_build(checkpoint, folder / "bundle")
    assert any("altered" in note for note in progress.notes)
    assert "compile" in progress.ran
    assert ax.open(folder / "bundle").manifest.files == bundle.manifest.files
    assert path.read_bytes() != bytes(data)


def test_another_build_needs_force_and_the_old_one_stays_until_then(folder, checkpoint):
    before = (folder / "bundle/manifest.json").read_bytes()
    with pytest.raises(ax.InputError, match="--force"):
        tiny_build(checkpoint, folder / "bundle", buckets="0.5")
    assert (folder / "bundle/manifest.json").read_bytes() == before
    bundle, _ = tiny_build(checkpoint, folder / "bundle", buckets="0.5", force=True)
    assert bundle.manifest.bucket_fractions == (0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resolution": (25, 16)}, "height 25 doesn't fit.*multiple of 4.*nearest is 24"),
        ({"resolution": (24, 0)}, "below 1 pixel"),
        ({"resolution": (24, 128)}, "width 128 needs 32 positions.*largest width is 64"),
        ({"buckets": "0"}, "not above 0"),
        ({"buckets": "1.5"}, "above 1"),
        ({"buckets": "0.5,0.5"}, "twice"),
        ({"buckets": "0.5,0.51"}, "its own number below N"),
        (
            {"buckets": "0.25"},
            "here accelaes can't. Skip ratio 0.5 needs the bucket",
        ),
        ({"dtype": "bf16"}, "bf16"),
        ({"dtype": "fp8"}, "fp8"),
        ({"backend": "openvino"}, "openvino.*onnxruntime"),
        ({"targets": "sm90", "backend": "tensorrt-rtx"}, "sm90"),
        ({"targets": "sm86"}, "sm86"),
        ({"batch": 0}, "batch"),
        ({"affinity_layers": 0}, "affinity_every"),
    ],
)
def test_what_can_not_be_built_is_told_before_anything_is_written(checkpoint, tmp_path, options, said):
    with pytest.raises(ax.AccelAesError, match=said) as refusal:
        build(checkpoint, **{"model": "shapes", "output": tmp_path / "deep/bundle", "resolution": (24, 16)} | options)
    assert refusal.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_or_memory_is_told_with_both_sizes(checkpoint, tmp_path, monkeypatch):
    import collections

    usage = collections.namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(100, 99, 1))
        with pytest.raises(ax.BuildError, match=r"needs about 0\.1 GB of disk and .* 0\.0 GB free"):
            tiny_build(checkpoint, tmp_path / "bundle")
    memory = collections.namedtuple("memory", "available")
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: memory(1000))
        with pytest.raises(ax.BuildError, match="memory"):
            tiny_build(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["load", "trace", "export", "compile", "verify", "write"])
def test_an_interrupt_in_any_stage_leaves_no_bundle_and_the_next_build_finishes(checkpoint, tmp_path, stage):
    class Interrupting(Silent):
        def stage(self, name, detail=""):
            if name == stage:
                raise KeyboardInterrupt
            return super().stage(name, detail)

    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, model="shapes", output=tmp_path / "bundle", resolution=(24, 16), progress=Interrupting())
    assert not (tmp_path / "bundle").exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], [".stages"])
    if (tmp_path / ".stages").exists():
        assert not [path for path in (tmp_path / ".stages").iterdir() if path.name.startswith(".")]
    if stage in ("write", "compile"):
        tiny_build(checkpoint, tmp_path / "bundle")
        ax.open(tmp_path / "bundle")


def test_an_engine_that_computes_something_else_is_not_written(folder, checkpoint, monkeypatch):
    def compare(session, manifest, geometry, model, update=None):
        from accelaes_export.contract.geometry import Parity

        return (Parity(bucket=24, reference="diffusers", max_abs=1, max_rel=0.5, tolerance=1e-4, passed=False),)

    monkeypatch.setattr(verification, "compare", compare)
    with pytest.raises(ax.BuildError, match=r"n = 24 differs from the diffusers by 0\.5"):
        tiny_build(checkpoint, folder / "second")
    assert not (folder / "second").exists()


def test_verify_finds_the_models_bundle_good_and_another_models_bad(folder, checkpoint, tmp_path_factory):
    bundle = ax.open(folder / "bundle")
    report = verification.verify(bundle)
    assert report.passed
    assert len(report.parity) == 4
    other = save_tiny_checkpoint(tmp_path_factory.mktemp("other"), CONFIG, seed=5)
    with pytest.raises(ax.InputError, match="other weights than this bundle was built from"):
        verification.verify(bundle, other)
    from accelaes_export.backbones.checkpoints import random_transformer
    from tests.tiny_sd3 import SD3

    manifest = bundle.manifest
    other = random_transformer(SD3, CONFIG, "fp32", 5)
    wrong = verification.compare(bundle.session(), manifest, manifest.geometry, other)
    assert not any(result.passed for result in wrong)


def test_half_precision_is_built_and_verified_within_its_tolerance(checkpoint, tmp_path):
    bundle, _ = tiny_build(checkpoint, tmp_path / "bundle", dtype="fp16", buckets="0.5")
    assert bundle.manifest.geometry.contract.dtype == "fp16"
    assert all(result.passed and result.tolerance == 2e-2 for result in bundle.manifest.geometry.parity)


def test_random_weights_need_no_checkpoint_and_verify_from_their_seed(tmp_path, monkeypatch):
    recipe = recipes.load("shapes")
    architecture = recipe.architecture() | {"num_layers": 1}
    shallow = recipe.model_copy(update={"transformer_config": architecture, "affinity_blocks": None})
    monkeypatch.setattr(recipes, "load", lambda _: shallow)
    progress = Recorder()
    options = {"buckets": "0.5", "presets": "none", "progress": progress}
    bundle = build(model="shapes", random_weights=True, seed=3, output=tmp_path / "bundle", **options)
    assert (bundle.manifest.source.kind, bundle.manifest.source.seed) == ("random", 3)
    assert verification.verify(bundle).passed


def test_an_engine_for_another_gpu_is_built_and_left_unverified(checkpoint, folder, monkeypatch):
    def elsewhere(*_, **__):
        raise OtherDeviceError("This engine was built for sm120 and this GPU is sm86; build it for sm86.")

    monkeypatch.setattr(OnnxRuntimeBackend, "open", elsewhere)
    bundle, progress = tiny_build(checkpoint, folder / "second", buckets="0.25,0.5")
    assert bundle.manifest.geometry.parity == ()
    assert [note for note in progress.notes if note.startswith("Not verified here: This engine was built for sm120")]


def test_a_recipe_of_ones_own_is_built_like_a_shipped_one(checkpoint, folder):
    own = recipes.load("shapes").model_copy(update={"name": "mine", "presets": ()})
    bundle = build(checkpoint, model=own, output=folder / "mine", resolution=(24, 16))
    assert bundle.manifest.model == "mine"
