"""`--report` of `profile` and `evaluate`: the page is written beside whatever else is, or refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.manifest import Source
from accelaes_export.measure.profiling.profile import Profile
from accelaes_export.measure.quality.report import QualityReport
from accelaes_export.measure.report.evaluation_page import evaluation_page
from accelaes_export.measure.report.profile_page import profile_page
from tests.cli.conftest import Command
from tests.fake_bundle import write_fake_bundle
from tests.measure.report.samples import profile_report, quality_report, rows


def test_profile_writes_the_page_of_what_it_measured(
    command: Command, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tables on the terminal name a machine's every part.
    machine = profile_report().machine | {"cpu": "a CPU", "cpus": [0], "pinned": True}
    measured = profile_report(machine=machine)
    monkeypatch.setattr("accelaes_export.measure.profiling.profile.profile", lambda *_: Profile(measured, {}))
    result = command("profile", bundle.path, "--report", "new/page.html")
    assert result.exit_code == 0, result.stderr
    assert "Wrote new/page.html" in result.stdout
    assert (tmp_path / "new/page.html").read_text("utf-8") == profile_page(measured, bundle.manifest)


def test_evaluate_writes_the_page_of_its_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a pipeline is to be found, so that the request is a good one.
    source = Source(kind="shipped", location="shipped:shapes", weights_sha256="0" * 64)
    bundle = write_fake_bundle(tmp_path / "bundle", source=source)
    made = []

    def evaluate(_: Bundle, __: object, folder: Path, **___: Any) -> QualityReport:
        folder.mkdir()
        made.extend(rows(folder))
        (folder / "pictures.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in made), "utf-8")
        return quality_report()

    monkeypatch.setattr("accelaes_export.measure.quality.evaluation.evaluate", evaluate)
    (tmp_path / "prompts.txt").write_text("a red star\n")
    asked = ["--prompts", "prompts.txt", "--policies", "accelaes", "--metrics", "psnr", "-o", "made"]
    result = command("evaluate", bundle.path, *asked, "--report", "page.html")
    assert result.exit_code == 0, result.stderr
    assert "Wrote made, page.html" in result.stdout
    expected = evaluation_page(quality_report(), made, tmp_path / "made", bundle.manifest)
    assert (tmp_path / "page.html").read_text("utf-8") == expected


@pytest.mark.parametrize("verb", [["profile"], ["evaluate", "--prompts", "prompts.txt"]], ids=lambda verb: verb[0])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: Command, bundle: Bundle, tmp_path: Path, verb: list[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n")
    result = command(*verb, bundle.path, "--report", tmp_path)
    assert result.exit_code == 2
    assert "is a folder; give the name of a file to write" in result.stderr
