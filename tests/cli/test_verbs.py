"""What each verb asks of the library, and what it shows of the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from accelaes_export import recipes
from accelaes_export.backends.base import Availability
from accelaes_export.building import builder
from accelaes_export.bundle.reading import Bundle
from accelaes_export.cli import diagnosis
from accelaes_export.cli.diagnosis import Diagnosis, Gpu
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.progress import BuildProgress
from tests.cli.conftest import Command
from tests.fake_bundle import fake_contract, fake_manifest, write_fake_bundle


class TestModels:
    def test_shows_every_recipe_and_explains_buckets(self, command: Command) -> None:
        lines = command("models").stdout.splitlines()
        (head,) = [line.split() for line in lines if line.startswith("model ")]
        rows = {line.split()[0]: dict(zip(head, line.split(), strict=False)) for line in lines}
        assert set(recipes.names()) <= set(rows), "a line each"
        assert (rows["sd3"]["N"], rows["sd3"]["size"], rows["sd3"]["tested"]) == ("4096", "1024x1024", "no")
        assert (rows["shapes"]["N"], rows["shapes"]["tested"]) == ("144", "yes")

    def test_says_all_about_one(self, command: Command) -> None:
        text = command("models", "sd3").stdout
        assert "N = 4096 at 1024x1024" in text and "skip ratios 0.25, 0.5, 0.75" in text
        assert "architecture only" in text  # sd3's published weights were never tested
        wrong = command("models", "sd33")
        assert wrong.exit_code == 2 and "Did you mean sd3" in wrong.stderr

    def test_json_is_alone_on_stdout(self, command: Command) -> None:
        models = {model["name"]: model for model in json.loads(command("models", "--json").stdout)}
        assert models["sd3"]["tokens"] == 4096
        assert models["shapes"]["forms"] == ["token", "component"]
        assert models["shapes"]["tokens"] == 144


class TestBuild:
    def test_hands_every_option_on_and_points_to_the_next_verb(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
    ) -> None:
        asked: dict[str, Any] = {}

        def build(checkpoint: str | None, *, progress: BuildProgress, **options: Any) -> Bundle:
            asked.update(options, checkpoint=checkpoint)
            progress.estimate(3_000_000_000, 2_000_000, 9_000_000_000, 8_000_000_000)
            with progress.stage("export", "opset 23") as stage:
                stage.update(0.5, "half")
            progress.reused("compile", "from an earlier build")
            return bundle

        monkeypatch.setattr(builder, "build", build)
        options = "--checkpoint ckpt --backend tensorrt-rtx --target sm86,sm120 --resolution 512x768 --batch 2 --seed 7"
        more = "--dtype bf16 --buckets 0.25,0.5 --affinity-every 2 --form component --frames 3 --weights inputs "
        more += "--text-multiple 16 --compiling autotune --attention plugin --block-ranges 0:12 --layerwise norm "
        more += "--presets ras,drift:budget=9 --components text -o here --force --random-weights --variant fp16 "
        more += "--tuning found.json --tuning-anyway"
        result = command("build", "--model", "sd3", *options.split(), *more.split())
        assert result.exit_code == 0, result.stderr
        assert asked == {
            "model": "sd3",
            "checkpoint": "ckpt",
            "backend": "tensorrt-rtx",
            "output": Path("here"),
            "targets": "sm86,sm120",
            "resolution": "512x768",
            "batch": 2,
            "dtype": "bf16",
            "buckets": "0.25,0.5",
            "block_ranges": "0:12",
            "layerwise": "norm",
            "presets": "ras,drift:budget=9",
            "components": "text",
            "affinity_every": 2,
            "form": "component",
            "weights": "inputs",
            "compiling": "autotune",
            "attention": "plugin",
            "frames": 3,
            "variant": "fp16",
            "text_multiple": 16,
            "random_weights": True,
            "seed": 7,
            "tuning": Path("found.json"),
            "tuning_anyway": True,
            "sign": None,
            "force": True,
        }
        assert f"Next: accelaes-export inspect {bundle.path}" in result.stdout
        lines = result.stderr.splitlines()
        assert lines[0].startswith("will need") and "3.00 GB (9.00 GB free)" in lines[0]
        assert lines[1].startswith("export") and " s  peak " in lines[1] and lines[1].endswith("opset 23")
        assert lines[2].startswith("compile") and "reused  from an earlier build" in lines[2]

    def test_a_stage_that_fails_says_so_before_the_error(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def build(checkpoint: str | None, *, progress: BuildProgress, **options: Any) -> Bundle:
            with progress.stage("trace"):
                raise RuntimeError("boom")

        monkeypatch.setattr(builder, "build", build)
        stage, error = command("build", "--model", "sd3").stderr.splitlines()
        assert stage.startswith("trace") and "failed after" in stage
        assert error.startswith("error: unexpected RuntimeError: boom")


class TestInspect:
    def test_shows_model_buckets_tensors_parity_and_plan(self, command: Command, bundle: Bundle) -> None:
        text = command("inspect", bundle.path).stdout
        for expected in ("shapes (sd3, token form, 2 blocks)", "N = 16 (4 x 4 patches", "onnxruntime 1.31.1"):
            assert expected in text
        assert "30.0%" in text and "50.0%" in text  # a bucket's FLOPs against dense
        assert "passed" in text and "measured on a test" in text
        assert "DDDDDD.b.D .b.D.b.D.b .D.b.D.D" in text
        assert "cost 14.5 of 28 dense steps" in text

    def test_lists_every_budgets_plan_and_whose_it_is(self, command: Command, tmp_path: Path) -> None:
        own = DriftSchedule(symbols="DDDbb.DbD", theta=0.15, trend=0.45, cache_reach=0.35)
        defaults = fake_manifest().defaults.model_copy(update={"plans": {7: own}})
        text = command("inspect", write_fake_bundle(tmp_path / "own", defaults=defaults).path).stdout
        rows = {cells[0]: cells for line in text.splitlines() if len(cells := line.replace("│", " ").split()) > 8}
        assert rows["7"][:9] == ["7", "9", "6.5", "0.15,", "0.45", "0.35", "DDDbb.DbD", "this", "model"]
        assert rows["7"][9:] == ["not", "measured"]
        assert rows["12"][:3] == ["12", "28", "12"] and rows["12"][7:9] == ["every", "model"]
        few = defaults.model_copy(update={"steps": 4})
        text = command("inspect", write_fake_bundle(tmp_path / "few", defaults=few).path).stdout
        assert "this model" in text and "every model" not in text

    def test_folds_cache_tensors_into_one_row_unless_all_are_asked_for(self, command: Command, bundle: Bundle) -> None:
        folded = command("inspect", bundle.path).stdout
        assert "cache.{l}.k_bg  (2 layers)" in folded and "cache.0.k_bg" not in folded
        everything = command("inspect", bundle.path, "--tensors").stdout
        assert all(spec.name in everything for spec in (*fake_contract().inputs, *fake_contract().outputs))

    def test_json_is_the_manifest_and_alone_on_stdout(self, command: Command, bundle: Bundle) -> None:
        result = command("inspect", bundle.path, "--json")
        assert json.loads(result.stdout) == json.loads((bundle.path / "manifest.json").read_text())

    @pytest.mark.parametrize(
        ("options", "plan"),
        [
            (["--steps", "12"], "DDDDDD.b.D .b"),
            (["--steps", "4", "--policy", "dense"], "DDDD\n"),
            (["--policy", "stepcache"], "DDDDD.D.D. D.D.D.D.D. D.D.D.DD"),
        ],
    )
    def test_shows_the_plan_asked_for(self, command: Command, bundle: Bundle, options: list[str], plan: str) -> None:
        assert plan in command("inspect", bundle.path, *options).stdout

    def test_shows_a_bundle_that_cannot_run_here_and_says_why(
        self, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("accelaes_export.bundle.reading._installed", lambda package: "1.0.0")
        record = fake_manifest().backend.model_copy(
            update={"name": "tensorrt-rtx", "versions": {"tensorrt-rtx": "1.7.1.116"}}
        )
        result = command("inspect", write_fake_bundle(tmp_path / "rtx", backend=record).path)
        assert result.exit_code == 0
        assert "Does not run here" in result.stdout and "tensorrt-rtx 1.7.1.116" in result.stdout


class TestVerify:
    @staticmethod
    def pretend(monkeypatch: pytest.MonkeyPatch, **report: Any) -> None:
        module = ModuleType("accelaes_export.building.verification")
        module.verify = lambda bundle, checkpoint=None, progress=None: SimpleNamespace(
            **{"presets": (), "components": (), **report}
        )  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "accelaes_export.building.verification", module)

    def test_passes_with_the_table(self, command: Command, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, parity=bundle.manifest.geometry.parity, skipped="", passed=True)
        result = command("verify", bundle.path)
        assert result.exit_code == 0
        assert "1.0e-06" in result.stdout and "every bucket agrees" in result.stdout

    def test_fails_with_code_1_and_names_the_bucket(
        self, command: Command, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = bundle.manifest.geometry.parity[0].model_copy(update={"passed": False, "max_abs": 1.0})
        self.pretend(monkeypatch, parity=(failed,), skipped="", passed=False)
        result = command("verify", bundle.path)
        assert result.exit_code == 1
        assert "FAILED" in result.stdout and "outside the tolerance at n = 16" in result.stderr

    def test_says_when_numbers_could_not_be_compared(
        self, command: Command, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch, parity=(), skipped="no GPU here", passed=True)
        result = command("verify", bundle.path)
        assert result.exit_code == 0
        assert "Not compared: no GPU here" in result.stdout and "numbers were not compared" in result.stdout


class TestDoctor:
    @staticmethod
    def pretend(monkeypatch: pytest.MonkeyPatch, *, runs: bool) -> None:
        found = Diagnosis(
            backends={
                "onnxruntime": Availability(runs, runs, {"onnxruntime": "1.31.1"} if runs else {}),
                "tensorrt": Availability(
                    False, False, reason="tensorrt is not installed", remedy="pip install tensorrt"
                ),
            },
            gpus=(Gpu("NVIDIA Test", "sm120", 32000, "600.1"),) if runs else (),
            gpu_note="no NVIDIA driver",
            plugin="not part of this release",
            versions={"python": "3.11.0", "torch": ""},
        )
        monkeypatch.setattr(diagnosis, "diagnose", lambda: found)

    def test_shows_what_is_usable_and_what_would_mend_the_rest(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch, runs=True)
        result = command("doctor")
        assert result.exit_code == 0
        for expected in ("onnxruntime 1.31.1", "pip install tensorrt", "NVIDIA Test, sm120", "torch missing"):
            assert expected in result.stdout

    def test_ends_with_4_where_nothing_can_run(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, runs=False)
        result = command("doctor")
        assert result.exit_code == 4
        assert "none: no NVIDIA driver" in result.stdout
        assert 'pip install "accelaes-export[cpu]"' in result.stderr

    def test_json_is_alone_on_stdout_even_where_nothing_can_run(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch, runs=False)
        assert json.loads(command("doctor", "--json").stdout)["can_run"] is False

    def test_looks_at_this_machine_without_failing(self) -> None:
        found = diagnosis.diagnose()
        assert set(found.backends) == {"onnxruntime", "aoti", "tensorrt-rtx", "tensorrt"}
        assert found.versions["torch"]

    def test_a_backend_that_breaks_is_a_diagnosis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(name: str) -> None:
            raise OSError("libbroken.so: no such file")

        monkeypatch.setattr("accelaes_export.backends.backend", broken)
        found = diagnosis.diagnose()
        assert not found.can_run
        assert "libbroken.so" in found.backends["onnxruntime"].reason

    @pytest.mark.parametrize(
        ("answer", "gpus", "note"),
        [
            ("echo 'NVIDIA H200, 9.0, 143771, 580.1'", [("NVIDIA H200", "sm90", 143771, "580.1")], None),
            ("echo 'Weird, [N/A], [N/A], 1'; echo broken", [("Weird", "sm[N/A]", 0, "1")], None),
            ("echo 'No devices were found'; exit 6", [], "No devices were found"),
            ("exit 9", [], "nvidia-smi ended with 9"),
        ],
    )
    def test_reads_gpus_from_the_driver(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, gpus: list[Any], note: str | None
    ) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        found = diagnosis.diagnose()
        assert [(gpu.name, gpu.capability, gpu.memory_mb, gpu.driver) for gpu in found.gpus] == gpus
        assert note is None or found.gpu_note == note
