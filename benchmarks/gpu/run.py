"""The GPU benchmark in one call: builds side by side, a model checked and measured as soon as its own build is whole.

    python benchmarks/gpu/run.py                     within 10 minutes, on a machine with one NVIDIA GPU
    python benchmarks/gpu/run.py --models flux-dev --seconds 1800
    python benchmarks/gpu/run.py --tiny --rounds 1   shows on a CPU that everything works; its figures mean nothing

Every stage is a process of its own that ends with this one, however this one ends. <output> holds table.md,
figures.json, checks.json and log.txt, renewed whenever there is more; bundles lie in <work>.
benchmarks/gpu/README.md says what the machine needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from accelaes_export.plugins import leash  # noqa: E402
from benchmarks.gpu.models import split  # noqa: E402
from benchmarks.gpu.table import table  # noqa: E402

DEFAULT_MODELS = "sd3,flux-dev@0.25,lumina-next"  # FLUX's weights take longer to write than to measure
INSURANCE = "sd3@0.25"  # measured where the first model's build gives nothing
SETS = ("policies", "never-refreshed", "caches")
_LEAST_SECONDS = 20  # a stage with less isn't started
_RENEWED = 5.0  # seconds between two looks at what a stage has written
_LOG_BYTES = 200_000  # kept of every stage's log, from its end
_LARGE = 40e9  # bytes of memory from which on bundles lie there


@dataclass
class Stage:
    """One process: what it does to which model.

    Attributes:
        limit: when it is ended, on the monotonic clock.
        outcome: what became of it; "" while it runs or waits.
    """

    model: str
    name: str
    process: subprocess.Popen[bytes] | None = None
    limit: float = 0.0
    outcome: str = ""
    began: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.model} {self.name}"


@dataclass
class Benchmark:
    """All stages, and where they stand."""

    asked: argparse.Namespace
    work: Path
    builds: list[Stage] = field(default_factory=list)
    others: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        asked = self.asked
        models = [*asked.models, *([asked.insurance] if asked.insurance else [])]
        self.builds = [Stage(model, "build") for model in dict.fromkeys(models)]
        order = [(model, name) for model in asked.models for name in ("check", "policies")]
        order += [(model, name) for name in SETS[1:] for model in asked.models]
        order += [(asked.insurance, name) for name in ("check", "policies") if asked.insurance]
        self.others = [Stage(model, name) for model, name in order if name == "check" or name in asked.sets]

    def carry_out(self) -> int:
        """Everything there is time for; the number of stages that gave nothing."""
        began = time.monotonic()
        deadline = began + self.asked.seconds
        for build in self.builds:
            self._start(build, began + self.asked.build_share * self.asked.seconds)
        try:
            while self._next(deadline):
                self._look()
                self.write()
        finally:
            for stage in (*self.builds, *self.others):
                if stage.process is not None:
                    leash.stop(stage.process)
            self._look()
            for stage in (*self.builds, *self.others):
                stage.outcome = stage.outcome or "not run: no time was left"
            self.write()
        return sum(stage.outcome not in ("done", "not needed") for stage in (*self.builds, *self.others))

    def _next(self, deadline: float) -> bool:
        """Start what can be started, then wait a little; whether anything is left to do before the deadline."""
        running = [stage for stage in self.others if stage.process is not None and not stage.outcome]
        if not running:
            stage = self._most_important()
            if stage is not None and deadline - time.monotonic() >= min(_LEAST_SECONDS, self.asked.seconds):
                # A check that hangs must not take the time of everything that comes after it.
                limit = time.monotonic() + self.asked.check_share * self.asked.seconds
                self._start(stage, min(limit, deadline) if stage.name == "check" else deadline)
                running = [stage]
            elif not any(not build.outcome for build in self.builds):
                return False
        watched = [*running, *(build for build in self.builds if not build.outcome)]
        until = min(time.monotonic() + _RENEWED, deadline)
        while time.monotonic() < until and all(s.process is None or s.process.poll() is None for s in watched):
            time.sleep(0.05)
        return time.monotonic() < deadline

    def _most_important(self) -> Stage | None:
        """The first stage that waits and whose model is built; what can't run any more is told why."""
        outcomes = {build.model: build.outcome for build in self.builds}
        for stage in self.others:
            if stage.process is not None or stage.outcome:
                continue
            if stage.model == self.asked.insurance and stage.model not in self.asked.models:
                first = outcomes[self.asked.models[0]]
                if first in ("", "done"):  # it isn't needed, or not yet
                    stage.outcome = "not needed" if first else ""
                    continue
            if outcomes[stage.model] == "done":
                return stage
            if outcomes[stage.model]:
                stage.outcome = "not run: there is no bundle"
        return None

    def _start(self, stage: Stage, limit: float) -> None:
        asked = self.asked
        command = [sys.executable, "-m", "benchmarks.gpu.measure", stage.model, stage.name, "--work", str(self.work)]
        command += ["--backend", asked.backend, "--steps", str(asked.steps), "--rounds", str(asked.rounds)]
        command += ["--compiling", asked.compiling] if asked.compiling else []
        command += ["--tiny"] if asked.tiny else []
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        print(f"[{stage.model}] {stage.name} ...", file=sys.stderr, flush=True)
        with self._log(stage).open("wb") as log:
            stage.process = leash.start(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths}
            )
        stage.limit, stage.began = limit, time.monotonic()

    def _look(self) -> None:
        """What has ended meanwhile, by itself or because its time was up."""
        for stage in (*self.builds, *self.others):
            if stage.process is None or stage.outcome:
                continue
            code = stage.process.poll()
            if code is None and time.monotonic() < stage.limit:
                continue
            if code is None:
                leash.stop(stage.process)
                stage.outcome = "stopped: its time was up"
            elif code == 0:
                stage.outcome = "done"
            elif code < 0 and time.monotonic() >= stage.limit - 1:
                stage.outcome = "stopped: its time was up"
            else:
                stage.outcome = f"failed with {code}: {_last_line(self._log(stage))}"
            if stage.name == "check" and stage.outcome == "done" and self._read(stage).get("wrong"):
                stage.outcome = f"WRONG: {self._read(stage)['wrong'][0]}"
            spent = time.monotonic() - stage.began
            print(f"[{stage.model}] {stage.name}: {stage.outcome} ({spent:.0f} s)", file=sys.stderr, flush=True)

    def write(self) -> None:
        """The table and everything behind it, of what is there."""
        reports = {f"{s.model}.{s.name}": self._read(s) for s in self.others if s.name in SETS and self._read(s)}
        checks = {s.model: self._read(s) for s in self.others if s.name == "check" and self._read(s)}
        outcomes = {s.label: s.outcome or "running" for s in (*self.builds, *self.others) if s.process or s.outcome}
        told = {"commit": _commit(), "stages": outcomes}
        logs = [f"== {s.label}\n{_tail(self._log(s))}" for s in (*self.builds, *self.others) if self._log(s).is_file()]
        _write(self.asked.output / "figures.json", json.dumps({**told, "reports": reports}))
        _write(self.asked.output / "checks.json", json.dumps({**told, "checks": checks}, indent=1))
        _write(self.asked.output / "log.txt", "\n".join(logs))
        _write(self.asked.output / "table.md", table(reports, outcomes, checks, told["commit"]))

    def _read(self, stage: Stage) -> dict[str, Any]:
        path = self.work / f"{stage.model}.{stage.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _log(self, stage: Stage) -> Path:
        return self.work / f"{stage.model}.{stage.name}.log"


def _commit() -> str:
    """What is measured; with a + where the checkout differs from it."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _write(path: Path, text: str) -> None:
    """At once or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _tail(path: Path) -> str:
    return path.read_bytes()[-_LOG_BYTES:].decode(errors="replace")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _models(text: str) -> list[str]:
    given = [name.strip() for name in text.split(",") if name.strip()]
    try:
        for label in given:
            split(label)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not given:
        raise argparse.ArgumentTypeError("no model was given")
    return given


def _memory() -> Path | None:
    """A folder in memory, where there is much of it."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > _LARGE else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", type=_models, default=DEFAULT_MODELS, help=f"NAME or NAME@DEPTH [{DEFAULT_MODELS}]")
    parser.add_argument("--insurance", default=None, help=f"built too, measured if the first fails [{INSURANCE}]")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--seconds", type=float, default=570, help="everything ends by then [570]")
    parser.add_argument("--build-share", type=float, default=0.6, help="of the time, for every build [0.6]")
    parser.add_argument("--check-share", type=float, default=0.2, help="of the time, for every check [0.2]")
    parser.add_argument("--output", type=Path, default=Path("out/gpu"), help="results, a few small files")
    parser.add_argument("--work", type=Path, help="bundles and logs, gigabytes [a temporary folder, then removed]")
    parser.add_argument("--backend", default="aoti")
    parser.add_argument("--compiling", default="", help="flags of kernel generation, e.g. per-bucket,autotune")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a few blocks of small width, on the CPU")
    asked = parser.parse_args()
    if asked.insurance is None:
        asked.insurance = INSURANCE if asked.models == _models(DEFAULT_MODELS) and not asked.tiny else ""
    asked.output = asked.output.resolve()
    asked.output.mkdir(parents=True, exist_ok=True)
    # As Ctrl-C does: what is under way is ended and what there is written. After SIGKILL the leash ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    work = asked.work or Path(tempfile.mkdtemp(prefix="accelaes-gpu-", dir=_memory()))
    work.mkdir(parents=True, exist_ok=True)
    try:
        failed = Benchmark(asked, work.resolve()).carry_out()
    finally:
        if asked.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print((asked.output / "table.md").read_text(encoding="utf-8"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
