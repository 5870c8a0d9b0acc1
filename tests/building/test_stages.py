"""A stage is kept whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from accelaes_export.building.stages import StageStore, stage_key
from accelaes_export.errors import BuildError


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "bundle")


def write(text):
    return lambda folder: (folder / "file").write_text(text) and None


def test_a_finished_stage_is_found_by_its_key_alone(store):
    assert store.find("onnx", "k1") is None
    made = store.make("onnx", "k1", write("one"))
    assert store.find("onnx", "k1") == made
    assert store.find("onnx", "k2") is None
    assert store.find("engine", "k1") is None
    assert (made / "file").read_text() == "one"


def test_a_stage_whose_file_was_altered_is_gone(store):
    made = store.make("onnx", "k", write("one"))
    (made / "file").write_text("two")
    assert store.find("onnx", "k") is None
    assert not made.exists()


def test_a_stage_with_a_file_more_or_less_is_gone(store):
    (store.make("onnx", "k", write("one")) / "more").touch()
    assert store.find("onnx", "k") is None
    (store.make("onnx", "k", write("one")) / "file").unlink()
    assert store.find("onnx", "k") is None


def test_what_an_interrupted_removal_left_is_neither_whole_nor_in_the_way(store, monkeypatch):
    for left in ({"file": "one"}, {"stage.json": "{}"}, {"stage.json": "[]"}, {"stage.json": '{"file": "x"}'}):
        folder = store.root / "onnx-k"
        folder.mkdir(parents=True)
        for name, text in left.items():
            (folder / name).write_text(text)
        assert store.find("onnx", "k") is None
        assert store.make("onnx", "k", write("new")) == store.find("onnx", "k")
        store._take_away(folder)
    folder.mkdir()
    (folder / "file").write_text("in the way")
    assert store.make("onnx", "k", write("new")) == store.find("onnx", "k")


def test_a_pipe_in_a_stage_is_not_waited_for(store):
    made = store.make("onnx", "k", write("one"))
    (made / "file").unlink()
    os.mkfifo(made / "file")
    assert store.find("onnx", "k") is None and not made.exists()


def test_a_spoilt_stage_is_gone_at_once_though_its_removal_takes_long(store, monkeypatch):
    made = store.make("onnx", "k", write("one"))
    (made / "file").write_text("two")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("accelaes_export.building.stages.shutil.rmtree", lambda path, **_: made.exists() or killed())
        store.find("onnx", "k")
    assert not made.exists() and store.find("onnx", "k") is None


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_work_that_raises_leaves_nothing(store, failure):
    def work(folder):
        (folder / "file").write_text("half")
        raise failure

    with pytest.raises(type(failure)):
        store.make("onnx", "k", work)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "said"),
    [(OSError(errno.ENOSPC, "No space left on device"), "disk is full"), (MemoryError(), "ran out of memory")],
)
def test_running_out_of_disk_or_memory_is_one_clear_sentence(store, failure, said):
    def work(folder):
        raise failure

    with pytest.raises(BuildError, match=said):
        store.make("onnx", "k", work)
    assert list(store.root.iterdir()) == []


def test_two_builds_that_finish_the_same_stage_share_it(store):
    def meanwhile(folder):
        write("mine")(folder)
        other = StageStore(store.root.parent / "other")
        pid = os.getpid
        try:
            os.getpid = lambda: 1  # another process's name for its half-made folder
            other.make("onnx", "k", write("theirs"))
        finally:
            os.getpid = pid

    made = store.make("onnx", "k", meanwhile)
    assert (made / "file").read_text() == "theirs"


def test_what_killed_builds_left_is_cleaned_and_what_running_ones_make_is_not(store):
    store.root.mkdir()
    dead, alive = store.root / ".onnx-k.4194999", store.root / f".onnx-k.{os.getpid()}"
    dead.mkdir()
    alive.mkdir()
    store.clean()
    assert not dead.exists()
    assert alive.exists()


def test_keys_follow_every_part_and_not_their_order():
    assert stage_key(a=1, b=[2]) == stage_key(b=[2], a=1)
    assert len({stage_key(a=1, b=[2]), stage_key(a=1, b=[3]), stage_key(a=2, b=[2])}) == 3
