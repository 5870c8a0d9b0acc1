"""Whatever goes wrong is one line on stderr, an exit code, and nothing on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accelaes_export.building import builder
from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import AccelAesError, BuildError, BundleError, InputError, MissingComponentError
from tests.cli.conftest import Command
from tests.fake_bundle import ENGINE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AccelAesError("It failed."), 1),
        (InputError("It is wrong."), 2),
        (BundleError("It is damaged."), 2),
        (BuildError("It stopped."), 3),
        (MissingComponentError("It isn't there."), 4),
        (RuntimeError("first\nsecond"), 1),
        (MemoryError(), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_error_has_its_code_and_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(builder, "build", fail)
    result = command("build", "--model", "shapes")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.strip().startswith("error: ") and result.stderr.strip().count("\n") == 0
    if isinstance(error, AccelAesError):
        assert str(error) in result.stderr


def test_an_unexpected_error_hints_at_the_traceback_and_debug_shows_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(builder, "build", fail)
    assert "unexpected ZeroDivisionError: of course (set ACCELAES_DEBUG=1" in command("build", "--model", "sd3").stderr
    monkeypatch.setenv("ACCELAES_DEBUG", "1")
    assert "Traceback" in command("build", "--model", "sd3").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see accelaes-export --help"),
        (["build"], "Missing option '--model'; see accelaes-export build --help"),
        (["build", "--model", "sd4"], "Model 'sd4' is unknown; there are dit-xl-2, "),
        (["build", "--model", "shapes", "--nope"], "No such option"),
        (["build", "--model", "shapes", "--batch", "two"], "'two' is not a valid integer"),
        (["build", "--model", "shapes", "--buckets", "0,0.5"], "Bucket 0 is not above 0"),
        (["build", "--model", "shapes", "--buckets", "1.5"], "Bucket 1.5 is above 1"),
        (["build", "--model", "shapes", "--buckets", "0.5,0.5"], "0.5 is given twice"),
        (["build", "--model", "shapes", "--resolution", "48"], "HEIGHTxWIDTH"),
        (["build", "--model", "shapes", "--target", "rtx4090"], "targets cpu and cuda, not rtx4090"),
        (["build", "--model", "shapes", "--dtype", "fp8"], "'fp8'"),
        (["build", "--model", "shapes", "--backend", "tensort"], "tensort"),
        (["build", "--model", "shapes", "--batch", "0"], "batch"),
        (["inspect", "nowhere"], "nowhere does not exist"),
        (["inspect", "."], "not a bundle"),
        (["verify", "nowhere"], "nowhere does not exist"),
        (["run", "nowhere", "--prompt", "x"], "nowhere does not exist"),
        (["run", "nowhere"], "Missing option '--prompt'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    command: Command, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = command(*arguments)
    assert said in result.stderr
    assert (result.exit_code, result.stdout, list(tmp_path.iterdir())) == (2, "", [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "1"], "at least 2"),
        (["--interval", "0"], "interval"),
        (["--mask-step", "28"], "mask_step"),
        (["--skip-ratio", "0.6"], "the nearest skip ratio is 0.5"),
        (["--skip-ratio", "1.5"], "skip_ratio"),
        (["--policy", "magic"], "no policy 'magic'"),
        (["--policy", "dense", "--interval", "2"], "no option 'interval'"),
        (["--policy", "stepcache", "--mask-out", "mask.png"], "no sparse step"),
        (["-o", "picture.txt"], "names no picture format"),
        (["--policy", "delta-dit"], "this bundle was built without any"),
        (["--policy", "dense", "--plan", "DDb"], "policy dense chooses no focus tokens"),
        (["--policy", "drift", "--plan", "DDx"], "Step 2 of the plan is 'x'"),
        (["--policy", "drift", "--plan", "DDbD", "--steps", "28"], "has 4 steps, but the run has 28"),
        (["--plan", "DDDDb"], "after step 5, which must be D"),
        (["--policy", "stepcache", "--budget", "12"], "no option 'budget'"),
        (["--policy", "ras", "--policy-option", "metric=mean"], "metric is 'mean'"),
        (["--policy", "ras", "--policy-option", "metric"], "write NAME=VALUE"),
        (["--policy-option", "warmup=3", "--warmup", "4"], "warmup is given twice"),
        (["--policy-option", "theta=[0.3"], "can't be read; write it as in YAML"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_any_model_is_loaded(
    command: Command, bundle: Bundle, options: list[str], said: str
) -> None:
    before = set(bundle.path.parent.iterdir())
    result = command("run", bundle.path, "--prompt", "x", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert set(bundle.path.parent.iterdir()) == before


@pytest.mark.parametrize("verb", [["inspect"], ["verify"], ["run", "--prompt", "x"]])
def test_a_truncated_bundle_is_refused_by_every_verb(command: Command, bundle: Bundle, verb: list[str]) -> None:
    (bundle.path / "engine.onnx").write_bytes(ENGINE[:100])
    result = command(*verb, bundle.path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "engine.onnx is truncated" in result.stderr


@pytest.mark.parametrize("verb", [["verify"], ["run", "--prompt", "x"]])
def test_an_edited_bundle_is_refused_where_its_engine_is_used(
    command: Command, bundle: Bundle, verb: list[str]
) -> None:
    (bundle.path / "engine.onnx").write_bytes(bytes(len(ENGINE)))
    result = command(*verb, bundle.path)
    assert result.exit_code == 2
    assert "engine.onnx was altered" in result.stderr


def test_a_bundle_of_a_newer_schema_asks_for_an_upgrade(command: Command, bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (bundle.path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    result = command("inspect", bundle.path)
    assert result.exit_code == 2
    assert "pip install --upgrade accelaes-export" in result.stderr


def test_ctrl_c_ends_the_process_with_130_and_no_traceback() -> None:
    code = (
        "import time, sys\nfrom accelaes_export.cli import diagnosis\nfrom accelaes_export.cli import main\n"
        "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "diagnosis.diagnose = wait\nmain(['doctor'])"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr.strip()) == (130, "error: interrupted")


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        finished = subprocess.run(
            [sys.executable, "cli.py", "models"],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert finished.returncode in (0, 1)
    assert "Traceback" not in finished.stderr
