"""A whole evaluation: who is drawn when, what is kept, going on, and figures recomputed from the rows by hand."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.manifest import Manifest, Source
from accelaes_export.contract.tensors import BlockRange, GraphContract
from accelaes_export.errors import InputError
from accelaes_export.measure.quality.evaluation import evaluate
from accelaes_export.measure.quality.folder import read_rows
from accelaes_export.measure.quality.report import ImageRow, QualityReport
from accelaes_export.measure.quality.request import EvaluationRequest, possible_policies
from accelaes_export.policies import named
from accelaes_export.progress import Silent
from tests.fake_bundle import fake_contract, fake_geometry, fake_manifest, write_fake_bundle
from tests.measure.quality.fake_pictures import Pictures, fake_world, picture

PROMPTS = ("a red star", "a blue ring", "a long green cross")
POLICIES = {"stepcache": named("stepcache"), "fewer-steps:budget=9": named("fewer-steps", budget=9)}
REQUEST = EvaluationRequest(PROMPTS, POLICIES, seeds=(1, 5), steps=12, metrics=("psnr", "edges"))
LABELS = ("dense", "stepcache", "fewer-steps:budget=9")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, Pictures]:
    return fake_world(tmp_path / "bundle", monkeypatch)


class Notes(Silent):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def measured(world: tuple[Bundle, Pictures], folder: Path, request: EvaluationRequest = REQUEST) -> QualityReport:
    return evaluate(world[0], request, folder)


def rows_of(folder: Path) -> dict[tuple[str, int, int], ImageRow]:
    return {row.key: row for row in read_rows(folder)}


def test_policies_take_turns_at_every_prompt_and_seed_dense_first(
    world: tuple[Bundle, Pictures], tmp_path: Path
) -> None:
    measured(world, tmp_path / "ev")
    warmup, calls = world[1].calls[:3], world[1].calls[3:]
    assert {name for name, *_ in warmup} == {"dense", "stepcache", "fewer-steps"}
    turns = [calls[k : k + 3] for k in range(0, len(calls), 3)]
    assert [turn[0] for turn in turns] == [("dense", prompt, seed) for prompt in PROMPTS for seed in (1, 5)]
    for turn in turns:
        assert {(prompt, seed) for _, prompt, seed in turn} == {turn[0][1:]}
        assert {name for name, *_ in turn} == {"dense", "stepcache", "fewer-steps"}
    behind_dense = [turn[1][0] for turn in turns]
    assert behind_dense.count("stepcache") == behind_dense.count("fewer-steps") == 3


def test_every_row_says_what_its_picture_took_and_how_far_it_is_from_dense(
    world: tuple[Bundle, Pictures], tmp_path: Path
) -> None:
    measured(world, tmp_path / "ev")
    rows = rows_of(tmp_path / "ev")
    assert set(rows) == {(label, k, seed) for label in LABELS for k in range(3) for seed in (1, 5)}
    for (label, k, seed), row in rows.items():
        policy = label.split(":")[0]
        ours, dense = (np.asarray(picture(name, PROMPTS[k], seed)) / 255 for name in (policy, "dense"))
        if label == "dense":
            assert set(row.metrics) == {"edges"}
        else:
            assert row.metrics["psnr"] == pytest.approx(-10 * math.log10(((ours - dense) ** 2).mean()))
        computed = row.plan.count("D")
        assert (row.prompt, row.steps, row.attempt) == (PROMPTS[k], 9 if "fewer" in label else 12, 0)
        assert (row.token_cost, row.flop_cost, len(row.plan)) == (computed, computed, row.steps)
        assert row.denoise_seconds == pytest.approx(0.016 * computed)
        assert row.seconds > 0 and (tmp_path / "ev" / row.file).is_file()
        assert row.cut == ("the rest" if k == 2 else "")


def test_figures_are_those_of_the_rows(world: tuple[Bundle, Pictures], tmp_path: Path) -> None:
    report = measured(world, tmp_path / "ev")
    rows = rows_of(tmp_path / "ev")
    places = [(k, seed) for k in range(3) for seed in (1, 5)]
    assert [policy.label for policy in report.policies] == list(LABELS)
    for policy in report.policies:
        own = [rows[policy.label, k, seed] for k, seed in places]
        dense = [rows["dense", k, seed] for k, seed in places]
        assert policy.token_cost.value == own[0].token_cost and policy.pictures == 6
        assert policy.seconds.value == pytest.approx(statistics.median(row.seconds for row in own))
        edges = statistics.fmean(row.metrics["edges"] for row in own)
        assert policy.metrics["edges"].value == pytest.approx(edges)
        if policy.label == "dense":
            assert (policy.time_ratio, policy.differences, set(policy.metrics)) == (None, {}, {"edges"})
            continue
        errors = [10 ** (-row.metrics["psnr"] / 10) for row in own]
        assert policy.metrics["psnr"].value == pytest.approx(-10 * math.log10(statistics.fmean(errors)))
        ratios = [one.seconds / other.seconds for one, other in zip(dense, own, strict=True)]
        assert policy.time_ratio is not None and policy.denoise_ratio is not None
        assert policy.time_ratio.value == pytest.approx(statistics.median(ratios))
        assert policy.denoise_ratio.value == pytest.approx(12 / own[0].token_cost)
        pairs = [o.metrics["edges"] - d.metrics["edges"] for o, d in zip(own, dense, strict=True)]
        assert policy.differences["edges"].value == pytest.approx(statistics.fmean(pairs))
        assert set(policy.differences) == {"edges"}
    assert QualityReport.model_validate_json((tmp_path / "ev/summary.json").read_text()) == report
    assert any("1 prompt(s) were longer" in note for note in report.notes)


@pytest.mark.parametrize("stop", [3, 4, 5, 9, 20])
def test_an_interrupted_evaluation_goes_on_where_it_stopped_and_loses_nothing(
    world: tuple[Bundle, Pictures], tmp_path: Path, stop: int
) -> None:
    bundle, pictures = world

    def interrupt(made: int) -> None:
        if made == stop:
            raise KeyboardInterrupt

    pictures.fail = interrupt
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        evaluate(bundle, REQUEST, tmp_path / "ev", progress=notes)
    done = rows_of(tmp_path / "ev")
    assert len(done) == stop - 3  # after the warm-up's three
    assert notes.notes == [f"{stop - 3} of 18 pictures are in {tmp_path / 'ev'}; the same command goes on from there."]
    assert not (tmp_path / "ev/summary.json").exists()

    pictures.fail = lambda made: None
    pictures.calls.clear()
    report = measured(world, tmp_path / "ev")
    rows = rows_of(tmp_path / "ev")
    assert len(rows) == 18 and report.attempts == 2
    assert all(rows[key] == row for key, row in done.items())
    drawn = pictures.calls[len({row.policy for row in rows.values()} - whole(done)) :]
    assert len(drawn) == 18 - len(done)

    # Only times of one attempt are compared.
    place = next(row for row in rows.values() if row.attempt == 1)
    cache = next(policy for policy in report.policies if policy.label == "stepcache")
    assert cache.time_ratio is not None
    together = [
        key for key in rows if key[0] == "stepcache" and rows["dense", key[1], key[2]].attempt == rows[key].attempt
    ]
    assert cache.time_ratio.pictures == len(together) and place.attempt == 1

    # What was measured against dense's picture read back from disk is what it would have been at once.
    for (label, k, seed), row in rows.items():
        if label != "dense":
            ours, dense = (np.asarray(picture(name, PROMPTS[k], seed)) / 255 for name in (label.split(":")[0], "dense"))
            assert row.metrics["psnr"] == pytest.approx(-10 * math.log10(((ours - dense) ** 2).mean()))


def whole(rows: dict[tuple[str, int, int], ImageRow]) -> set[str]:
    """Labels with nothing left to draw, which aren't warmed up again."""
    return {label for label in LABELS if sum(key[0] == label for key in rows) == 6}


def test_a_finished_evaluation_draws_nothing_again(world: tuple[Bundle, Pictures], tmp_path: Path) -> None:
    first = measured(world, tmp_path / "ev")
    world[1].calls.clear()
    second = measured(world, tmp_path / "ev")
    assert not world[1].calls
    assert second.policies == first.policies and second.attempts == 2


def test_another_request_in_the_same_folder_is_refused_before_anything_is_loaded(
    world: tuple[Bundle, Pictures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(world, tmp_path / "ev")
    monkeypatch.setattr(Bundle, "session", lambda self: pytest.fail("it was opened"))
    for change, said in (({"seeds": (1,)}, "seeds 1, 5, not 1"), ({"steps": 10}, "other options of policies")):
        fields = {name: getattr(REQUEST, name) for name in REQUEST.__dataclass_fields__}
        with pytest.raises(InputError, match=said):
            measured(world, tmp_path / "ev", EvaluationRequest(**fields | change))


def test_videos_are_measured_over_all_frames(world: tuple[Bundle, Pictures], tmp_path: Path) -> None:
    world[1].frames = 3
    request = EvaluationRequest(PROMPTS[:1], {"stepcache": named("stepcache")}, steps=12, metrics=("psnr",))
    measured(world, tmp_path / "ev", request)
    row = rows_of(tmp_path / "ev")["stepcache", 0, 1]
    ours, dense = (
        np.stack([np.asarray(picture(name, PROMPTS[0], 1, frame)) / 255 for frame in range(3)])
        for name in ("stepcache", "dense")
    )
    assert row.metrics["psnr"] == pytest.approx(-10 * math.log10(((ours - dense) ** 2).mean()))


def test_a_metric_may_say_nothing_of_a_picture_but_must_not_be_no_number(
    world: tuple[Bundle, Pictures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelaes_export.measure.quality.metrics import Metric

    stars = Metric("stars", lambda sample: 1.0 if "star" in sample.prompt else None)
    monkeypatch.setattr("accelaes_export.measure.quality.evaluation.load_metrics", lambda names, device: ([stars], []))
    report = measured(world, tmp_path / "ev")
    found = report.policies[0].metrics["stars"]
    assert (found.value, found.pictures, found.prompts, found.low) == (1, 2, 1, None)
    broken = Metric("stars", lambda sample: math.nan)
    monkeypatch.setattr("accelaes_export.measure.quality.evaluation.load_metrics", lambda names, device: ([broken], []))
    with pytest.raises(InputError, match="Metric stars gave no number for prompt 'a red star'"):
        measured(world, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ()}, "No prompt"),
        ({"prompts": ("a", "a")}, "Prompt 'a' is given twice"),
        ({"seeds": ()}, "No seed"),
        ({"seeds": (1, 1)}, "Seed 1 is given twice"),
        ({"seeds": (-1,)}, "Seed -1"),
        ({"seeds": (2**63,)}, "allowed are 0 to 9223372036854775807"),
        ({"steps": 1}, "at least 2"),
        ({"guidance": -1.0}, "at least 0"),
        ({"guidance": math.nan}, "at least 0"),
        ({"metrics": ()}, "No metric"),
        ({"metrics": ("magic",)}, "no metric 'magic'"),
        ({"policies": {"dense": named("dense", theta=0.2)}}, "the reference's"),
    ],
)
def test_what_can_not_be_asked_for_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="^[^\n]*$") as caught:
        EvaluationRequest(**{"prompts": ("a",), "policies": {}, **changes})
    assert said in str(caught.value)


def test_a_bundle_of_random_weights_has_no_pictures_to_compare(tmp_path: Path) -> None:
    source = Source(kind="random", location="random", weights_sha256="0", seed=0)
    bundle = write_fake_bundle(tmp_path / "random", source=source)
    with pytest.raises(InputError, match="random weights"):
        evaluate(bundle, REQUEST, tmp_path / "ev")
    assert not (tmp_path / "ev").exists()


def test_by_default_every_policy_is_there_that_the_bundle_can_have() -> None:
    from accelaes_export.policies import registry

    contract = fake_contract()

    def of(contract: GraphContract) -> Manifest:
        return fake_manifest(geometries=(fake_geometry(contract=contract),))

    found, impossible = possible_policies(fake_manifest(), None)
    assert set(found) == set(registry.names()) - {"delta-dit", "diffsparse"}
    assert set(impossible) == {"delta-dit", "diffsparse"} and "lacks 'schedule'" in impossible["diffsparse"]
    assert "built without any" in impossible["delta-dit"]
    ranges = (BlockRange(first=0, last=1, of=2, changes=()),)
    found, impossible = possible_policies(of(contract.model_copy(update={"ranges": ranges})), None)
    assert set(found) == set(registry.names()) - {"diffsparse"} and set(impossible) == {"diffsparse"}
    blind = contract.model_copy(update={"outputs": tuple(o for o in contract.outputs if o.name != "affinity")})
    found, impossible = possible_policies(of(blind), None)
    assert "accelaes" in impossible and "no text" in impossible["accelaes"]
    assert set(found) | set(impossible) == set(registry.names()) and "stepcache" in found
