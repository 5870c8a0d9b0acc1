"""What the documentation shows works as it is written: every Python example runs, every command can be read."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from accelaes_export.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/shapes/README.md"]
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{k}")
    for page in PAGES
    for k, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]
COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for page in PAGES
        for line in re.findall(r"^    (accelaes-export .*)$", page.read_text(encoding="utf-8"), re.M)
    }
)


@pytest.fixture
def checkout(shapes_bundle, tmp_path, monkeypatch):
    """A working folder as the documentation speaks of: this repository's, with a bundle and a profile in it."""
    for name in ("engines/checkpoints", "benchmarks", "examples"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "engines/built").mkdir()
    (tmp_path / "engines/built/shapes").symlink_to(shapes_bundle.path)
    (tmp_path / "engines/built/.stages").symlink_to(shapes_bundle.path.parent / ".stages")  # what was traced already
    shutil.copy(ROOT / "benchmarks/results/profile-shapes.json", tmp_path / "shapes.json")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", EXAMPLES)
@pytest.mark.usefixtures("checkout")
def test_an_example_runs_as_it_is_written(block):
    exec(compile(block, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_read(line):
    words = shlex.split(re.sub(r"\s*[|>].*", "", line).replace("…", ""))[1:]
    command: click.Command = main
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, line
        command = found
    if "--help" not in words:
        command.make_context(command.name, words)


def test_there_are_examples_and_commands():
    assert len(EXAMPLES) >= 5 and len(COMMANDS) >= 15
