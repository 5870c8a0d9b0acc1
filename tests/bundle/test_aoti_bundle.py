"""Every verb on a bundle of AOTInductor packages: two blocks of the shipped checkpoint, for this CPU."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner, Result

import accelaes_export as ax
from accelaes_export.backends.aoti import AotiBackend
from accelaes_export.backends.weights_file import WEIGHTS_FILE
from accelaes_export.cli import main
from accelaes_export.policies import Dense
from examples.shapes.evaluate import load_pipeline
from tests.native.building import ONNXRUNTIME
from tests.native.library import Native, NativeBundle, NativeError
from tests.native.reference import setting
from tests.native.test_runs import carried_out, require_same
from tests.runtime.complete_bundle import DrawsNatively
from tests.shallow_shapes import save_shallow_shapes
from tests.trajectories import follows

pytestmark = [
    pytest.mark.xdist_group("aoti"),
    pytest.mark.skipif(not AotiBackend().availability().can_build, reason="there is no C++ compiler"),
]

LIBTORCH = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").encode()
PROMPT = "an intricate red star on the left"


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shallow_shapes(tmp_path_factory.mktemp("checkpoint") / "shapes")


def build(checkpoint: Path, folder: Path) -> Result:
    options = (
        f"--model shapes --checkpoint {checkpoint} --backend aoti --target cpu --compiling no-freezing "
        f"--presets teacache,accelaes -o {folder}"
    )
    return command("build", *options.split())


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command line, its weights beside the package."""
    folder = tmp_path_factory.mktemp("aoti") / "shapes"
    assert "aoti on cpu" in build(checkpoint, folder).stdout
    return folder


def test_a_build_measures_its_own_parity_and_leaves_weights_beside_the_package(bundle: Path) -> None:
    manifest = ax.open(bundle).manifest
    assert manifest.backend.files == ("focus_step.pt2", WEIGHTS_FILE)
    assert manifest.backend.targets == ("cpu",)
    assert [result.passed and result.max_rel < 1e-5 for result in manifest.geometry.parity] == [True] * 4
    assert manifest.files["focus_step.pt2"].size < manifest.files[WEIGHTS_FILE].size
    names = [path.name for path in bundle.parent.glob(".stages/*")]
    assert not [name for name in names if name.startswith("onnx")]  # nothing was exported


def test_a_second_build_has_nothing_to_do(checkpoint: Path, bundle: Path) -> None:
    assert "is already this build" in build(checkpoint, bundle).stderr


def test_inspect_names_torch_and_the_instructions_the_code_needs(bundle: Path) -> None:
    manifest = json.loads(command("inspect", bundle, "--json").stdout)
    versions = manifest["backend"]["versions"]
    assert versions["torch"] == torch.__version__ and versions["cpu"]


def test_verify_passes(bundle: Path) -> None:
    assert "every bucket and preset agrees" in command("verify", bundle).stdout


def test_run_makes_a_picture(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "star.png"
    result = command("run", bundle, "--prompt", PROMPT, "-o", picture, "--mask-out", tmp_path / "mask.png")
    assert picture.stat().st_size > 1000 and "Plan of accelaes, 28 steps" in result.stdout


def test_profile_measures_buckets_and_policies_and_names_kernels(bundle: Path, tmp_path: Path) -> None:
    written = tmp_path / "profile.json"
    asked = f"--steps 8 --policies dense,accelaes --warmup-rounds 0 --iterations 2 --save-json {written}"
    command("profile", bundle, *asked.split())
    report = json.loads(written.read_text())
    assert report["bundle"]["backend"] == "aoti"
    assert [bucket["n"] for bucket in report["buckets"]] == [36, 72, 108, 144]
    assert all(bucket["kernels"] and bucket["seconds"]["count"] == 2 for bucket in report["buckets"])
    assert [policy["name"] for policy in report["policies"]] == ["dense", "accelaes"]


class TestNatively:
    """libaccelaes runs the package with its weights beside it."""

    @pytest.fixture(scope="class")
    def opened(self, native: Native, bundle: Path) -> NativeBundle:
        return native.open(bundle, library=LIBTORCH, allow_code=1)

    @pytest.mark.parametrize("name", ["teacache", "accelaes"])
    @pytest.mark.parametrize("guided", [True, False])
    def test_its_runs_are_pythons(self, opened: NativeBundle, bundle: Path, name: str, guided: bool) -> None:
        python = ax.open(bundle)
        preset = python.preset(name)
        given = setting(python, preset, preset.plans[20], seed=3, guided=guided)
        require_same(python, opened, given)
        assert torch.is_grad_enabled(), "it leaves torch's mode as it was"

    def test_two_threads_take_turns(self, opened: NativeBundle, bundle: Path) -> None:
        python = ax.open(bundle)
        preset = python.preset("accelaes")
        given = [setting(python, preset, preset.plans[12], seed=seed) for seed in range(4)]
        alone = [carried_out(opened, one)[-1][1] for one in given]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda one: carried_out(opened, one)[-1][1], given))
        assert [one.tobytes() for one in together] == [one.tobytes() for one in alone]

    def test_native_code_is_run_where_it_is_allowed_alone(self, native: Native, bundle: Path) -> None:
        with pytest.raises(NativeError, match=r"is native code \(aoti\), .* options\.allow_code is 1") as error:
            native.open(bundle, library=LIBTORCH)
        assert error.value.code == 2

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            (b"/nowhere/libtorch_cpu.so", "libtorch can't be loaded .* install torch, or give its lib/libtorch_cpu.so"),
            (
                str(ONNXRUNTIME).encode(),
                "There is no aoti_torch_abi_version in it; install the torch it was built with",
            ),
        ],
    )
    def test_a_library_that_is_none_is_told(self, native: Native, bundle: Path, path: bytes, said: str) -> None:
        with pytest.raises(NativeError, match=said) as error:
            native.open(bundle, library=path, allow_code=1)
        assert error.value.code == 4

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (
                lambda data: data["backend"]["versions"].update(torch="1.2.0"),
                r"built with torch 1\.2\.0, and this libtorch",
            ),
            (lambda data: data["backend"]["versions"].update(cpu="sparc"), "built for sparc, and this machine is"),
            (
                lambda data: data["backend"]["versions"].update(cpu="x86_64 avx9"),
                "uses avx9, which this CPU doesn't have",
            ),
            (lambda data: data["backend"]["versions"].update(SparseQueryAttention="1"), "calls the attention plugin"),
            (
                lambda data: data["geometries"][0]["contract"]["outputs"].pop(),
                "has other tensors than its manifest says",
            ),
        ],
    )
    def test_a_package_that_does_not_belong_here_is_refused(self, native, bundle, tmp_path, spoil, said) -> None:
        copied = tmp_path / "bundle"
        shutil.copytree(bundle, copied)
        data = json.loads((copied / "manifest.json").read_text())
        spoil(data)
        (copied / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(NativeError, match=said) as error:
            native.open(copied, library=LIBTORCH, allow_code=1)
        assert error.value.code in (2, 4)

    def test_damaged_packages_and_weights_are_refused(self, native: Native, bundle: Path, tmp_path: Path) -> None:
        """Bytes of the zip's directory and of the weights' header; a package's code itself has its hash."""
        copied, chance = tmp_path / "bundle", random.Random(3)
        shutil.copytree(bundle, copied)
        for name, stretch in (("focus_step.pt2", slice(-900, None)), (WEIGHTS_FILE, slice(8, 900))):
            whole = (copied / name).read_bytes()
            for _ in range(12):
                data = bytearray(whole)
                places = range(len(data))[stretch]
                for _ in range(3):
                    data[chance.choice(places)] = chance.randrange(256)
                (copied / name).write_bytes(data)
                try:
                    native.open(copied, library=LIBTORCH, allow_code=1, skip_hashes=1).close()
                except NativeError as error:
                    assert error.code in (1, 2, 4) and str(error).endswith(".")
            (copied / name).write_bytes(whole)


def test_doctor_lists_it(bundle: Path) -> None:
    found = json.loads(command("doctor", "--json").stdout)["backends"]["aoti"]
    assert (found["can_build"], found["can_run"]) == (True, True)


def test_the_dense_policy_follows_the_untouched_pipeline(checkpoint: Path, bundle: Path) -> None:
    def latents(pipe: object) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        pipe(  # type: ignore[operator]
            PROMPT,
            num_inference_steps=8,
            guidance_scale=4.5,
            max_sequence_length=8,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            callback_on_step_end=lambda _, i, t, state: kept.append(state["latents"].clone()) or state,
        )
        return kept

    pipe = load_pipeline(checkpoint)
    expected = latents(pipe)
    ax.accelerate(pipe, ax.open(bundle), policy=Dense())
    assert follows(latents(pipe), expected)


@pytest.mark.native
class TestAPictureNatively(DrawsNatively):
    """From the prompt on: text encoders and VAE are packages too, and every bucket has one of its own."""

    asked_for = PROMPT
    opening: ClassVar[dict[str, object]] = {"library": LIBTORCH, "allow_code": 1}

    @pytest.fixture(scope="class")
    def bundle(self, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ax.Bundle:
        folder = tmp_path_factory.mktemp("aoti") / "complete"
        options = (
            f"--model shapes --checkpoint {checkpoint} --backend aoti --target cpu --compiling no-freezing,per-bucket "
            f"--presets dense,accelaes,drift:budget=12 --components text,vae,tokenizers -o {folder}"
        )
        command("build", *options.split())
        packages = [name for name in ax.open(folder).manifest.backend.files if name.endswith(".pt2")]
        assert len(packages) == 4
        return ax.open(folder)

    def test_a_bucket_without_a_package_is_refused(self, native: Native, bundle: ax.Bundle, tmp_path: Path) -> None:
        """Packages whose names don't say which bucket they are of, or say another's."""
        for name, said in (
            ("focus_step.x.pt2", "which bucket it is of"),
            ("focus_step.n7.pt2", "no package for a call"),
        ):
            folder = Path(shutil.copytree(bundle.path, tmp_path / name))
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "focus_step.n144.pt2").rename(folder / name)
            files = manifest["backend"]["files"]
            files[files.index("focus_step.n144.pt2")] = name
            manifest["files"][name] = manifest["files"].pop("focus_step.n144.pt2")
            (folder / "manifest.json").write_text(json.dumps(manifest))
            with pytest.raises(NativeError, match=said):
                opened = native.open(folder, **self.opening)
                run = opened.run(None, None, preset=b"dense", seed=3)
                run.prompt(PROMPT)
                run.next()
