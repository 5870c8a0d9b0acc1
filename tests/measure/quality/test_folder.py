"""An evaluation's folder: nothing done is lost, nothing foreign is touched, and what differs is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from accelaes_export.errors import InputError
from accelaes_export.measure.quality.folder import ROWS, EvaluationFolder, image_name, read_rows
from accelaes_export.measure.quality.report import ImageRow
from tests.measure.quality.fake_pictures import picture

WANTED = {"build_key": "k1", "seeds": [1, 2], "prompts": ["a", "b"], "metrics": ["psnr"], "guidance": 4.5}
WANTED_POLICIES = [{"label": "dense", "options": {}}, {"label": "drift", "options": {"budget": None}}]


def row(policy: str = "dense", k: int = 0, seed: int = 1, **changes: Any) -> ImageRow:
    fields: dict[str, Any] = {"policy": policy, "prompt_index": k, "prompt": "a red star", "seed": seed}
    fields |= {"file": image_name(0, policy, k, seed), "steps": 2, "plan": "DD", "token_cost": 2, "flop_cost": 2}
    fields |= {"seconds": 1, "denoise_seconds": 0.5, "attempt": 0, "metrics": {"psnr": math.inf, "edges": 0.25}}
    return ImageRow(**fields | changes)


def test_rows_and_pictures_come_back_as_they_were_even_infinite_numbers(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    frames = [picture("dense", "a", 1, frame) for frame in range(3)]
    added = [row(affinity=(0.5, 1e-5), focus_index=(1, 3)), row("drift", metrics={"psnr": 41.25})]
    folder.add(added[0], frames)
    folder.add(added[1], frames[:1])
    assert list(read_rows(folder.path)) == added
    for line in (folder.path / ROWS).read_text().splitlines():  # any reader of JSON takes it
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [frame.tobytes() for frame in folder.frames(added[0])] == [frame.tobytes() for frame in frames]
    assert len(folder.frames(added[1])) == 1


def test_a_second_start_finds_what_is_done_and_counts_itself(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    assert folder.attempt == 0
    for seed in (1, 2):
        folder.add(row(seed=seed), [picture("dense", "a", seed)])
    again = EvaluationFolder(tmp_path / "ev")
    again.start(WANTED)
    assert (again.rows, again.attempt) == (folder.rows, 1)


def test_what_a_crash_left_half_written_is_made_again(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    for seed in (1, 2, 3):
        folder.add(row(seed=seed), [picture("dense", "a", seed)])
    path = folder.path / ROWS
    path.write_bytes(path.read_bytes()[:-40])  # a torn last line
    (folder.path / row(seed=1).file).unlink()  # and a picture that somebody removed
    again = EvaluationFolder(tmp_path / "ev")
    again.start(WANTED)
    assert list(again.rows) == [("dense", 0, 2)]
    again.add(row(seed=1), [picture("dense", "a", 1)])
    assert [one.seed for one in read_rows(folder.path)] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 2, 3]}, "with seeds 1, 2, not 1, 2, 3"),
        ({"build_key": "k2"}, "with another build of the bundle"),
        ({"prompts": ["a", "c"]}, "with other prompts"),
        ({"metrics": ["psnr", "ssim"]}, "with metrics psnr, not psnr, ssim"),
        ({"guidance": 2.0}, "with guidance 4.5, not 2.0"),
        ({"policies": WANTED_POLICIES[:1]}, "with the policies dense, drift, not dense"),
        ({"policies": [WANTED_POLICIES[0], {"label": "drift", "options": {"budget": 9}}]}, "other options of policies"),
    ],
)
def test_another_evaluation_in_the_folder_is_one_sentence_and_stays_as_it_is(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    before = {**WANTED, "policies": WANTED_POLICIES}
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(before)
    folder.add(row(), [picture("dense", "a", 1)])
    files = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="^[^\n]*--force to begin anew.$") as caught:
        EvaluationFolder(tmp_path / "ev").check({**before, **changes})
    assert said in str(caught.value)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == files


def test_force_begins_anew_and_removes_only_what_an_evaluation_wrote(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    folder.add(row(), [picture("dense", "a", 1)])
    (folder.path / "notes.txt").write_text("mine")
    anew = EvaluationFolder(tmp_path / "ev", force=True)
    anew.start({**WANTED, "seeds": [9]})
    assert (anew.rows, anew.attempt) == ({}, 0)
    assert sorted(path.name for path in folder.path.iterdir()) == ["evaluation.json", "notes.txt", ROWS]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="no evaluation's"):
        EvaluationFolder(tmp_path, force=force).start(WANTED)
    assert (tmp_path / "pictures").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        EvaluationFolder(tmp_path / "file", force=force).check(WANTED)
    with pytest.raises(InputError, match="can't be written"):
        EvaluationFolder(tmp_path / "file" / "below", force=force).check(WANTED)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"started": "x"}'])
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, content: str) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    (folder.path / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match="evaluation.json can't be read"):
        EvaluationFolder(tmp_path / "ev").check(WANTED)


def test_rows_that_are_none_or_point_elsewhere_are_one_sentence(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    for line, said in (
        ('{"policy": "dense"}', "Line 1 of .* is no picture's row"),
        (row(file="../../secret.png").model_dump_json(), "outside the folder"),
        (row(file="pictures/../../secret.png").model_dump_json(), "outside the folder"),
    ):
        (folder.path / ROWS).write_text(line + "\n")
        with pytest.raises(InputError, match=said):
            EvaluationFolder(tmp_path / "ev").start(WANTED)


def test_labels_become_names_that_differ_and_stay_inside() -> None:
    labels = ["dense", "drift:budget=12", "drift:budget=12.5", "ras:resets=[0.4,0.7]", "a/../../b", "ü" * 200]
    names = [image_name(position, label, 3, 7) for position, label in enumerate(labels)]
    assert len(set(names)) == len(labels)
    assert names[1] == "pictures/1-drift_budget=12/00003-seed7.png"
    for name in names:
        assert Path(name).parts[0] == "pictures" and len(Path(name).parts) == 3 and ".." not in Path(name).parts


def test_a_picture_in_grey_or_with_alpha_comes_back_as_rgb(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "ev")
    folder.start(WANTED)
    folder.add(row(), [Image.new("L", (4, 4), 70)])
    (frame,) = folder.frames(row())
    assert (frame.mode, frame.getpixel((1, 1))) == ("RGB", (70, 70, 70))
