"""`evaluate`: a table and files, one sentence for what can't be, and the shipped checkpoint from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelaes_export.bundle.reading import Bundle
from accelaes_export.cli.policy_options import labelled_policies
from accelaes_export.errors import AccelAesError, InputError
from accelaes_export.measure.quality.folder import read_rows
from accelaes_export.measure.quality.published import LABEL, papers_about
from accelaes_export.measure.quality.report import QualityReport
from accelaes_export.measure.quality.request import EvaluationRequest
from accelaes_export.policies import RAS, AccelAes, Dense, Drift, StepCache, registry
from tests.cli.conftest import Command
from tests.fake_bundle import fake_contract, fake_geometry, fake_manifest
from tests.measure.quality.fake_pictures import Pictures, fake_world


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# two\na red star\na blue ring\n", encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, Pictures]:
    return fake_world(tmp_path / "bundle", monkeypatch)


def test_shows_one_table_of_cost_time_and_metrics_and_writes_the_summary(
    command: Command, world: tuple[Bundle, Pictures], prompts: Path, tmp_path: Path
) -> None:
    options = [
        "--policies",
        "stepcache,fewer-steps:budget=9",
        "--seeds",
        "0,4",
        "--steps",
        "12",
        "--save-json",
        "a/s.json",
    ]
    result = command("evaluate", world[0].path, "--prompts", prompts, *options, "--metrics", "psnr,edges", "-o", "ev")
    assert result.exit_code == 0, result.stderr
    for text in ("2 prompt(s) x 2 seed(s)", "dense / this", "PSNR ↑", "Plan of fewer-steps:budget=9, 9 steps"):
        assert text in result.stdout
    assert "Difference to dense, same prompt and seed" in result.stdout
    assert "Wrote ev, a/s.json" in result.stdout
    assert "warm up" in result.stderr and "warm up" not in result.stdout
    report = QualityReport.model_validate_json((tmp_path / "a/s.json").read_text())
    assert report.model_dump_json(indent=1) + "\n" == (tmp_path / "ev/summary.json").read_text()
    assert len(list(read_rows(tmp_path / "ev"))) == 3 * 2 * 2
    cells = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│ stepcache")]
    cost = next(policy for policy in report.policies if policy.label == "stepcache").token_cost.value
    assert float(cells[0][2]) == cost


def test_the_same_command_goes_on_and_another_one_is_refused(
    command: Command, world: tuple[Bundle, Pictures], prompts: Path
) -> None:
    asked = ["evaluate", world[0].path, "--prompts", prompts, "--policies", "stepcache", "--metrics", "psnr"]
    world[1].fail = lambda made: (_ for _ in ()).throw(KeyboardInterrupt) if made == 7 else None
    result = command(*asked)
    assert result.exit_code == 130
    assert "5 of 12 pictures are in out/evaluation; the same command goes on" in " ".join(result.stderr.split())
    world[1].fail = lambda made: None
    result = command(*asked)
    assert result.exit_code == 0 and "5 of 12 in out/evaluation" in result.stderr
    result = command(*asked, "--seeds", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds an evaluation with seeds 1, 2, 3, not 1; give the same" in result.stderr
    assert command(*asked, "--seeds", "1", "--force").exit_code == 0


def test_says_which_metrics_and_policies_are_left_out_and_how_to_get_them(
    command: Command, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = fake_contract()
    blind = contract.model_copy(update={"outputs": tuple(o for o in contract.outputs if o.name != "affinity")})
    geometries = (fake_geometry(contract=blind),)
    bundle, _ = fake_world(tmp_path / "blind", monkeypatch, geometries=geometries, affinity_layers=())
    monkeypatch.setitem(__import__("sys").modules, "imscore.hps.model", None)
    result = command("evaluate", bundle.path, "--prompts", prompts, "--seeds", "1")
    assert result.exit_code == 0, result.stderr
    assert "accelaes is left out: Policy accelaes needs a mask" in " ".join(result.stderr.split())
    words = " ".join(result.stdout.split())
    assert "hpsv2 was not measured: imscore can't be imported" in words
    assert 'pip install "accelaes-export[quality]"' in words


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EvaluationRequest, Any]]:
    """What was to be measured; nothing is."""
    asked: list[tuple[EvaluationRequest, Any]] = []

    def measure(bundle: Bundle, request: EvaluationRequest, folder: Path, **options: Any) -> None:
        asked.append((request, folder))
        raise AccelAesError("That was all.")

    monkeypatch.setattr("accelaes_export.measure.quality.evaluation.evaluate", measure)
    return asked


def test_by_default_all_policies_three_seeds_and_whatever_can_be_measured(
    command: Command, world: tuple[Bundle, Pictures], prompts: Path, asked: list[Any]
) -> None:
    result = command("evaluate", world[0].path, "--prompts", prompts)
    ((request, folder),) = asked
    assert set(request.policies) == set(registry.names()) - {"delta-dit", "diffsparse"}
    assert "delta-dit is left out: " in result.stderr and "built without any" in result.stderr
    assert "diffsparse is left out: Policy diffsparse lacks 'schedule'" in " ".join(result.stderr.split())
    assert (request.prompts, request.seeds) == (("a red star", "a blue ring"), (1, 2, 3))
    assert (request.metrics, request.steps, request.guidance, folder) == (None, None, None, Path("out/evaluation"))


def test_policies_may_have_options_and_keep_what_was_written_as_label() -> None:
    given = "dense,stepcache, drift:budget=12,drift:budget=10:theta=0,ras:resets=[0.4,0.7]"
    policies = labelled_policies(fake_manifest(), given)
    assert policies == {
        "dense": Dense(),
        "stepcache": StepCache(),
        "drift:budget=12": Drift(budget=12),
        "drift:budget=10:theta=0": Drift(budget=10, theta=0),
        "ras:resets=[0.4,0.7]": RAS(resets=(0.4, 0.7)),
    }
    own = fake_manifest().defaults.model_copy(update={"policy_options": {"mask_step": 3, "warmup": 3}})
    assert labelled_policies(fake_manifest(defaults=own), "accelaes") == {"accelaes": AccelAes(mask_step=3, warmup=3)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("magic", "no policy 'magic'"),
        ("dense,", "has an empty name"),
        (":budget=1", "has an empty name"),
        ("drift,drift", "Policy drift is given twice"),
        ("drift:budget", "can't be read; write NAME=VALUE"),
        ("drift:colour=red", "has no option 'colour'"),
    ],
)
def test_policies_that_can_not_be_read_are_one_sentence(given: str, said: str) -> None:
    with pytest.raises(InputError, match="^[^\n]*$") as caught:
        labelled_policies(fake_manifest(), given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", "none.txt"], "none.txt does not exist"),
        (["--prompts", "."], "is a folder"),
        (["--seeds", "1,one"], "--seeds has 'one'; give whole numbers from 0 up"),
        (["--seeds", "1,1"], "Seed 1 is given twice"),
        (["--steps", "1"], "at least 2"),
        (["--policies", "magic"], "no policy 'magic'"),
        (["--policies", "accelaes:skip_ratio=0.9"], "0.9"),
        (["--metrics", "psnr,"], "has an empty name"),
        (["--metrics", "beauty"], "no metric 'beauty'"),
        (["--save-json", "."], "is a folder"),
        (["--checkpoint", "."], "has no model_index.json"),
        (["--policies", "dense", "-o", "prompts.txt"], "is a file"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    command: Command,
    world: tuple[Bundle, Pictures],
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(Bundle, "session", lambda self: pytest.fail("it was opened"))
    before = set(prompts.parent.rglob("*"))
    result = command("evaluate", world[0].path, "--prompts", prompts, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert set(prompts.parent.rglob("*")) == before


def test_a_metric_that_is_not_there_is_a_missing_component(
    command: Command, world: tuple[Bundle, Pictures], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imscore.hps.model", None)
    result = command("evaluate", world[0].path, "--prompts", prompts, "--metrics", "hpsv2")
    assert result.exit_code == 4
    assert "Metric hpsv2: imscore can't be imported" in result.stderr
    assert not world[1].calls


def test_evaluates_the_shipped_checkpoint_with_its_own_metrics(
    command: Command, shapes_bundle: Bundle, tmp_path: Path
) -> None:
    from examples.shapes.captions import heldout_prompts

    (tmp_path / "held-out.txt").write_text("\n".join(heldout_prompts(2)))
    options = ["--policies", "accelaes,drift", "--seeds", "3", "--metrics", "psnr,examples.shapes.metrics:ALL"]
    result = command("evaluate", shapes_bundle.path, "--prompts", "held-out.txt", *options, "-o", "ev")
    assert result.exit_code == 0, result.stderr
    report = QualityReport.model_validate_json((tmp_path / "ev/summary.json").read_text())
    dense, accelaes, drift = report.policies
    assert dense.token_cost.value == 28 and accelaes.token_cost.value == 14
    assert accelaes.flop_cost.value > 14  # text tokens are computed at sparse steps too
    assert accelaes.metrics["psnr"].value > 35 and drift.metrics["psnr"].value > 35
    assert dense.metrics["accuracy"].value > 0.5
    rows = {row.key: row for row in read_rows(tmp_path / "ev")}
    masked = rows["accelaes", 0, 3]
    assert masked.words is not None and masked.affinity is not None and masked.focus_index is not None
    assert len(masked.affinity) == report.bundle["tokens"] == 2 * len(masked.focus_index)
    assert masked.words.weights and max(masked.words.weights) == 1
    assert rows["dense", 0, 3].words is None and rows["dense", 0, 3].focus_index is None
    assert 0 <= accelaes.metrics["hit-rate"].value <= 1 and "hit-rate" not in dense.metrics


def test_tables_show_every_digit_however_many_metrics_and_long_labels_there_are(
    command: Command, world: tuple[Bundle, Pictures], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelaes_export.measure.quality.metrics import Metric

    many = [Metric(f"metric-{k}", lambda sample, k=k: -(k + 1) * 0.0012345 * len(sample.prompt)) for k in range(11)]
    monkeypatch.setattr("accelaes_export.measure.quality.evaluation.load_metrics", lambda names, device: (many, []))
    label = "ras:resets=[0.41,0.72]:starvation=0.125:interval=2:metric=norm"
    options = ["--policies", label, "--seeds", "1", "--save-json", "s.json"]
    result = command("evaluate", world[0].path, "--prompts", prompts, *options)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line[:1] in "│┃┏└"]
    assert max(map(len, lines)) <= 120 and "…" not in "".join(lines)
    text = " ".join(result.stdout.split())
    report = QualityReport.model_validate_json((tmp_path / "s.json").read_text())
    for found in report.policies[0].metrics.values():
        assert found.low is not None and found.high is not None
        for number in (found.value, found.low, found.high):
            assert f" {number:.4g} " in text
    assert "".join(line.split("│")[1].strip() for line in lines if line.startswith("│")).count(label) >= 1


def heads(text: str) -> list[list[str]]:
    """The column heads of every table drawn in `text`."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("┏"):
            found.append([""] * line.count("┳") + [""])
        elif line.startswith("┃"):
            found[-1] = [f"{a} {b.strip()}".strip() for a, b in zip(found[-1], line.split("┃")[1:], strict=False)]
    return found


def test_what_papers_publish_of_the_model_stands_apart_after_what_was_measured_and_not_in_the_summary(
    command: Command, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = fake_world(tmp_path / "sd3", monkeypatch, model="sd3")
    options = ["--policies", "stepcache", "--seeds", "1", "--metrics", "psnr,edges", "-o", "ev"]
    result = command("evaluate", bundle.path, "--prompts", prompts, *options, "--report", "page.html")
    assert result.exit_code == 0, result.stderr
    measured, label, rest = result.stdout.partition(LABEL)
    published = label + rest
    # Every table is one or the other: policies are the rows of measured ones, methods of published ones.
    assert [head[0] for head in heads(measured)] == ["policy", "policy"]
    whole = [(p, t) for p in papers_about("sd3") for t in p.tables if not t.ablation]
    assert [head[0] for head in heads(published)] == [table.rows_are for _, table in whole] == ["method", "method"]
    assert "PSNR" not in published and "│ stepcache" not in published and "│ TeaCache" not in measured
    lines = published.splitlines()
    for paper, table in whole:
        start = lines.index(paper.heading(table))
        drawn = [line for line in lines[start : lines.index("", start)] if "│" in line]
        assert [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in drawn] == list(table.rows)
        assert table.remark in lines
    assert f"{LABEL}: also ablations in tables RAS 6a, RAS 6c, RAS 6d, RAS 9" in " ".join(published.split())
    summary = (tmp_path / "ev/summary.json").read_text()
    assert not [word for word in (LABEL, "TeaCache", "0.2662") if word in summary]
    assert LABEL in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("model", ["shapes", "sd35-medium"])
def test_a_model_of_which_nothing_is_published_shows_nothing_published(
    command: Command, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    bundle, _ = fake_world(tmp_path / model, monkeypatch, model=model)
    options = ["--policies", "stepcache", "--seeds", "1", "--metrics", "psnr", "--report", "page.html"]
    result = command("evaluate", bundle.path, "--prompts", prompts, *options)
    assert result.exit_code == 0, result.stderr
    assert LABEL not in result.stdout and LABEL not in (tmp_path / "page.html").read_text()
