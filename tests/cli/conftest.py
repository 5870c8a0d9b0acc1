"""A fake bundle and a way to run one command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from accelaes_export.bundle.reading import Bundle
from accelaes_export.cli import main
from tests.fake_bundle import write_fake_bundle

Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run `accelaes-export ARGUMENTS` in an empty working folder; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("ACCELAES_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_fake_bundle(tmp_path / "bundle")
