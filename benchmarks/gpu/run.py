"""The GPU benchmark in one call: builds, then measurements in order of importance, one table last.

    python benchmarks/gpu/run.py                     within 10 minutes, on a machine with one NVIDIA GPU
    python benchmarks/gpu/run.py --models flux-dev --depth 1
    python benchmarks/gpu/run.py --tiny --rounds 1   shows on a CPU that everything works; its figures mean nothing

Every stage is a process of its own with what is left of the time, so one that hangs or runs out of memory costs only
itself. The table holds whatever was measured: <output>/table.md, and <output>/figures.json with everything.
benchmarks/gpu/README.md says what the machine needs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.table import table  # noqa: E402

MODELS = ("sd3", "lumina-next", "flux-dev")
DEPTHS = {"flux-dev": 0.25}  # its weights alone would take half the time to write
_LEAST_SECONDS = 20  # a stage with less isn't started
_GRACE = 5.0  # seconds for a process to end by itself


@dataclass(frozen=True)
class Stage:
    """One process: what it does to which model, and its command line."""

    model: str
    name: str
    command: tuple[str, ...]


def stages(asked: argparse.Namespace) -> tuple[list[Stage], list[Stage]]:
    """Builds, which run side by side, and measurements, most important first."""

    def stage(model: str, name: str) -> Stage:
        depth = asked.depth if asked.depth is not None else DEPTHS.get(model, 1.0)
        command = [sys.executable, "-m", "benchmarks.gpu.measure", model, name, "--output", str(asked.output)]
        command += ["--backend", asked.backend, "--steps", str(asked.steps), "--rounds", str(asked.rounds)]
        command += ["--depth", str(1.0 if asked.tiny else depth)]
        command += ["--compiling", asked.compiling] if asked.compiling else []
        return Stage(model, name, (*command, "--tiny") if asked.tiny else tuple(command))

    order = [(model, "policies") for model in asked.models]
    order += [(model, name) for name in ("never-refreshed", "caches") for model in asked.models]
    return [stage(model, "build") for model in asked.models], [
        stage(model, name) for model, name in order if name in asked.sets
    ]


def run(asked: argparse.Namespace) -> int:
    """Carry everything out; the number of stages that gave nothing."""
    deadline = time.monotonic() + asked.seconds
    asked.output.mkdir(parents=True, exist_ok=True)
    builds, measurements = stages(asked)
    done: dict[str, str] = {}
    for stage, outcome in _together(builds, deadline, asked.output):
        done[f"{stage.model} {stage.name}"] = outcome
    for stage in measurements:
        if done.get(f"{stage.model} build") != "done":
            outcome = "not run: there is no bundle"
        elif deadline - time.monotonic() < _LEAST_SECONDS:
            outcome = "not run: no time was left"
        else:
            ((_, outcome),) = _together([stage], deadline, asked.output)
        done[f"{stage.model} {stage.name}"] = outcome
        write(asked.output, done)
    write(asked.output, done)
    print((asked.output / "table.md").read_text(encoding="utf-8"))
    return sum(outcome != "done" for outcome in done.values())


def _together(wanted: list[Stage], deadline: float, output: Path) -> Iterator[tuple[Stage, str]]:
    """Run stages side by side until all have ended or the time is up; what became of each."""
    started = time.monotonic()
    running = []
    for stage in wanted:
        log = (output / f"{stage.model}.{stage.name}.log").open("w", encoding="utf-8")
        print(f"[{stage.model}] {stage.name} ...", file=sys.stderr, flush=True)
        process = subprocess.Popen(
            stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        running.append((stage, process, log))
    try:
        for stage, process, log in running:
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
                outcome = "done" if code == 0 else f"failed with {code}: {_last_line(Path(log.name))}"
            except subprocess.TimeoutExpired:
                _stop(process)
                outcome = "stopped: the time was up"
            print(f"[{stage.model}] {stage.name}: {outcome} ({time.monotonic() - started:.0f} s)", file=sys.stderr)
            yield stage, outcome
    finally:
        for _, process, log in running:
            _stop(process)
            log.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started; they are a session of their own."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, kind)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def write(output: Path, done: dict[str, str]) -> None:
    """The table and the collected figures of what is there."""
    reports = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(output.glob("*.*.json"))
        if path.stem.partition(".")[0] in MODELS
    }
    (output / "figures.json").write_text(json.dumps({"stages": done, "reports": reports}), encoding="utf-8")
    (output / "table.md").write_text(table(reports, done), encoding="utf-8")


def _models(text: str) -> list[str]:
    given = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in given if name not in MODELS]
    if unknown or not given:
        raise argparse.ArgumentTypeError(f"{text!r} was given; name some of {', '.join(MODELS)}")
    return given


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", type=_models, default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["policies", "never-refreshed", "caches"])
    parser.add_argument("--seconds", type=float, default=570, help="everything ends by then [570]")
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--backend", default="aoti")
    parser.add_argument("--compiling", default="", help="flags of kernel generation, e.g. per-bucket,autotune")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=float, help="share of the blocks kept [1; flux-dev 0.25]")
    parser.add_argument("--tiny", action="store_true", help="a few blocks of small width, on the CPU")
    asked = parser.parse_args()
    asked.output = asked.output.resolve()
    sys.exit(1 if run(asked) else 0)


if __name__ == "__main__":
    main()
