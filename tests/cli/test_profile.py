"""`profile`: tables on stdout, files written whole, and one sentence for what can't be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import AccelAesError
from accelaes_export.measure.profiling.report import ProfileReport
from accelaes_export.measure.profiling.request import ProfileRequest
from accelaes_export.policies import AccelAes, Dense, StepCache
from tests.cli.conftest import Command
from tests.measure.profiling.tiny import tiny_bundle

QUICK = ["--steps", "6", "--warmup-rounds", "0", "--iterations", "1"]


@pytest.fixture
def eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose engine is the eager focus step."""
    return tiny_bundle(tmp_path / "tiny", monkeypatch)


def test_shows_every_table_and_writes_what_was_asked_for(command: Command, eager: Bundle, tmp_path: Path) -> None:
    files = ["--save-json", "a/profile.json", "--trace", "b/trace.json"]
    options = ["--batches", "1,2", "--against", "eager", "--policies", "dense,stepcache", "--kernels", *files]
    result = command("profile", eager.path, *QUICK, *options)
    assert result.exit_code == 0, result.stderr
    for title in ("One focus step, B = 2", "Kernels, n = 12", "Whole denoise, 1 rounds", "Peers on the same weights"):
        assert title in result.stdout
    assert "Plan of stepcache, 6 steps" in result.stdout and "DDDDD" in result.stdout
    assert "Versions: torch" in result.stdout
    assert "Text encoders and VAE were not measured: Bundle" in result.stdout
    assert "Wrote a/profile.json, b/trace.json" in result.stdout
    report = ProfileReport.model_validate_json((tmp_path / "a/profile.json").read_text())
    assert [(p.name, p.images) for p in report.policies] == [(n, b) for b in (1, 2) for n in ("dense", "stepcache")]
    trace = json.loads((tmp_path / "b/trace.json").read_text())
    assert {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"} == {
        "dense",
        "stepcache",
        "diffusers eager",
    }
    assert "denoise" in result.stderr and "denoise" not in result.stdout.split("Plan of")[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ProfileRequest]:
    """What was to be measured; nothing is."""
    asked: list[ProfileRequest] = []

    def measure(bundle: Bundle, request: ProfileRequest, progress: object) -> None:
        asked.append(request)
        raise AccelAesError("That was all.")

    monkeypatch.setattr("accelaes_export.measure.profiling.profile.profile", measure)
    return asked


def test_runs_dense_stepcache_and_the_bundles_own_policy_by_default(
    command: Command, bundle: Bundle, asked: list[ProfileRequest]
) -> None:
    command("profile", bundle.path)
    (request,) = asked
    assert request.policies == {"dense": Dense(), "stepcache": StepCache(), "accelaes": AccelAes()}
    assert (request.steps, request.batches, request.warmup, request.iterations) == (None, (1,), 3, 20)
    assert (request.against, request.checkpoint) == ((), None)


def test_hands_on_what_is_asked_for(command: Command, bundle: Bundle, asked: list[ProfileRequest]) -> None:
    options = "--policies accelaes:interval=3,dense --steps 12 --batches 4,1 --warmup-rounds 0 --iterations 5"
    command("profile", bundle.path, *options.split(), "--against", "compile,cache-dit")
    wanted = {"accelaes:interval=3": AccelAes(interval=3), "dense": Dense()}
    assert asked == [ProfileRequest(wanted, 12, (4, 1), 0, 5, ("compile", "cache-dit"))]


def test_profiles_the_shipped_checkpoint_on_its_engine(command: Command, shapes_bundle: Bundle, tmp_path: Path) -> None:
    result = command("profile", shapes_bundle.path, *QUICK, "--kernels", "--save-json", "profile.json")
    assert result.exit_code == 0, result.stderr
    report = ProfileReport.model_validate_json((tmp_path / "profile.json").read_text())
    assert [part.name for part in report.parts] == ["text_encoder", "text_encoder_2", "vae"]
    for bucket in report.buckets:
        assert bucket.kernels_from == "the engine's own profiler"
        attention = [kernel for kernel in bucket.kernels if kernel.name == "Attention"]
        assert not attention or attention[0].calls == 6  # one a block
        assert sum(kernel.seconds for kernel in bucket.kernels) > 0
    assert "MatMul" in result.stdout
    assert all(policy.runtime is not None and policy.runtime.host_waits == 0 for policy in report.policies)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policies", "magic"], "no policy 'magic'"),
        (["--policies", "dense,"], "has an empty name"),
        (["--policies", "dense,dense"], "Policy dense is given twice"),
        (["--steps", "1"], "at least 2"),
        (["--batches", "1,two"], "--batches has 'two'"),
        (["--batches", "0"], "--batches has '0'"),
        (["--batches", "2,2"], "Batch 2 is given twice"),
        (["--warmup-rounds", "-1"], "-1 warm-up"),
        (["--iterations", "0"], "0 measured rounds"),
        (["--iterations", "many"], "not a valid integer"),
        (["--against", "teacache"], "no peer 'teacache'"),
        (["--save-json", "."], "is a folder"),
        (["--trace", "."], "is a folder"),
        (["--checkpoint", "."], "has no model_index.json"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    command: Command, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(Bundle, "session", lambda self: pytest.fail("it was opened"))
    before = set(bundle.path.parent.iterdir())
    result = command("profile", bundle.path, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert set(bundle.path.parent.iterdir()) == before


def test_a_missing_or_damaged_bundle_is_refused(command: Command, bundle: Bundle) -> None:
    assert "nowhere does not exist" in command("profile", "nowhere").stderr
    (bundle.path / "engine.onnx").write_bytes(b"short")
    result = command("profile", bundle.path)
    assert result.exit_code == 2 and "engine.onnx is truncated" in result.stderr


def test_ctrl_c_leaves_nothing_half_written(
    command: Command, eager: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("accelaes_export.measure.profiling.parts.profile_parts", interrupt)  # the last that is measured
    before = set(tmp_path.iterdir())
    result = command("profile", eager.path, *QUICK, "--save-json", "profile.json", "--trace", "trace.json")
    assert result.exit_code == 130 and result.stdout == ""
    assert result.stderr.strip().endswith("error: interrupted")
    assert set(tmp_path.iterdir()) == before
