"""Command lines of any options and values: each ends with one sentence and its code, and none takes long."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from accelaes_export.building import builder
from accelaes_export.bundle.reading import Bundle
from accelaes_export.cli import VERBS, main, plugin_build
from accelaes_export.errors import InputError
from accelaes_export.measure.profiling import profile
from accelaes_export.measure.quality import evaluation
from accelaes_export.runtime import generate
from tests.campaigns.size import attempts

pytestmark = pytest.mark.campaign

SECONDS = 10.0  # that reading a command line may take
NUMBERS = ("0", "1", "2", "7", "28", "-1", "1000000", "9" * 30, "9" * 5000, "0.5", "1e308", "nan", "-inf", "0x10", "१")
TEXTS = (
    *(
        "",
        " ",
        "x",
        "a,b",
        ",",
        ",,",
        "=",
        "a=",
        "=b",
        "a=b",
        "0.25,0.5",
        "1,2",
        "none",
        "None",
        "null",
        "~",
        "*",
        "..",
        "/",
    ),
    *(
        "😀",
        "\udcff",
        "%s",
        "{}",
        "[[[[",
        "{a: 1}",
        "!!python/object:os.system",
        "&a [*a]",
        "x" * 5000,
        "'",
        '"',
        "\t",
        "\n",
    ),
)
LIKELY = {
    "model": ("shapes", "sd3", "wan2.1-1.3b", "dit-xl-2", "SHAPES"),
    "backend": ("onnxruntime", "aoti", "tensorrt", "tensorrt-rtx"),
    "dtype": ("fp32", "fp16", "bf16", "int8"),
    "targets": ("cpu", "sm86,sm120", "native", "cuda"),
    "resolution": ("48x48", "1024x1024", "48X96", "1x1", "999999x999999", "17x17"),
    "buckets": ("0.5", "0.25,0.75", "1", "0", "1e-9", "nan", "inf"),
    "block_ranges": ("0:3", "0:3,3:6", "none", "5:2", "0:9999"),
    "form": ("token", "component"),
    "weights": ("engine", "inputs"),
    "attention": ("auto", "plugin", "native"),
    "compiling": ("autotune", "per-bucket", "freezing,no-freezing"),
    "policy": ("dense", "stepcache", "accelaes", "drift", "ras", "fora", "taylorseer", "teacache", "delta-dit"),
    "policies": ("dense,drift", "drift:budget=12", "ras:resets=[0.4,0.7]", "drift:budget=12:", "a:b=c"),
    "policy_options": (
        *("theta=0.3", "threshold=psnr", "resets=[1,2", "order=2", "ramp=maybe", "spatial_cfg={focus: 2}"),
        *(
            "theta=2001-13-45",
            f"theta={'9' * 5000}",
            f"threshold=0x{'f' * 5000}",
            "theta=[" + "[" * 2000,
            "theta=!!set {a}",
        ),
    ),
    "plan": ("D" * 28, "DDDD.b.D.b", "D" * 3000, ".b", "D0"),
    "metrics": ("psnr,ssim", "os:system", "a.b.c:d", "psnr,psnr"),
    "against": ("eager", "compile,eager", "cache-dit"),
    "output": ("out.png", "a/b/out.gif", "out", "/proc/x.png", "/dev/full", "."),
    "arch": ("sm86,sm120", "sm10", "sm86,sm86"),
}


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, with the work itself left out: what is asked is read and checked, and then refused."""

    def stop(*_: Any, **__: Any) -> Any:
        raise InputError("Here the work would begin.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builder, "build_lock", stop)
    monkeypatch.setattr(generate, "load_pipeline", stop)
    monkeypatch.setattr(profile, "profile", stop)
    monkeypatch.setattr(evaluation, "evaluate", stop)
    monkeypatch.setattr(plugin_build, "compile_kernels", stop)
    monkeypatch.setattr("accelaes_export.building.verification.verify", stop)
    monkeypatch.setattr("accelaes_export.native_sdk.put_in_place", stop)


def random_line(chance: random.Random, bundle: Path, prompts: Path) -> list[str]:
    """A verb with some of its options, mostly values it may have, and whatever a shell can hand over."""
    verb = chance.choice(VERBS)
    command: click.Command = main.get_command(click.Context(main), verb)  # type: ignore[assignment]
    line = [verb]
    if isinstance(command, click.Group):
        command = command.commands["build"]
        line.append("build")
    for parameter in command.params:
        name = parameter.name or ""
        if isinstance(parameter, click.Argument):
            line.append(chance.choice([str(bundle)] * 6 + ["nowhere", "", "x" * 5000, ".", "\udcff"]))
        elif isinstance(parameter, click.Option) and (parameter.required or chance.random() < 0.25):
            flag = chance.choice(parameter.opts)
            if parameter.is_flag:
                line.append(flag)
                continue
            numeric = isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType))
            likely = list(LIKELY.get(name, ("12", "3") if numeric else ("a red star",)))
            likely = [str(prompts)] if name == "prompts" else likely
            pool = likely * 3 if chance.random() < 0.6 else [*NUMBERS, *TEXTS, *likely]
            line += [flag, chance.choice(pool)]
    if chance.random() < 0.1:
        line.insert(chance.randrange(len(line) + 1), chance.choice(["--", "-", "--nope", "-x", *TEXTS]))
    return line


@pytest.mark.usefixtures("stopped")
def test_any_command_line_ends_with_a_sentence(shapes_bundle: Bundle, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\n")
    ends: Counter[int] = Counter()
    for chance in attempts(3_000):
        line = random_line(chance, shapes_bundle.path, prompts)
        started = time.monotonic()
        result = CliRunner().invoke(main, line)
        assert time.monotonic() - started < SECONDS, line
        assert result.exit_code in (0, 2, 3, 4), (line, result.stderr)
        assert "error: unexpected" not in result.stderr, (line, result.stderr)
        if result.exit_code:
            assert result.stderr.strip(), line
        ends[result.exit_code] += 1
    print(dict(ends))
    assert list(tmp_path.iterdir()) == [prompts], "something was left behind"
    assert ends[2]
