"""What can't be is refused in a sentence with a code, and no call in any order or file in any state crashes."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from ctypes import byref, c_int, c_void_p
from pathlib import Path

import numpy as np
import pytest

from accelaes_export.bundle.reading import Bundle
from tests.campaigns.mutations import mutated
from tests.campaigns.size import attempts
from tests.native.building import ONNXRUNTIME
from tests.native.library import Native, NativeError, RunOptions
from tests.native.reference import setting

pytestmark = pytest.mark.xdist_group("native")
T = 6
SIGMAS, TIMESTEPS = np.linspace(1, 0, T + 1), np.linspace(900, 10, T)
LIBRARY = str(ONNXRUNTIME).encode()


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewritten(folder: Path, change) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def latents(document: dict) -> dict:
    return document["geometries"][0]["latents"]


def first_preset(document: dict) -> dict:
    return document["geometries"][0]["presets"][0]


def without_presets(document: dict) -> None:
    document["geometries"][0]["presets"] = []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: shutil.rmtree(f), "is not a bundle: it has no manifest.json; give the folder"),
        (lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is damaged"),
        (lambda f: rewritten(f, lambda d: d.update(schema_version=99)), "has schema 99, and this library reads schema"),
        (lambda f: rewritten(f, lambda d: d["files"].update({"../x": {"sha256": "", "size": 1}})), "outside the"),
        (lambda f: (f / "focus_step.onnx").write_bytes(b"x"), "focus_step.onnx is truncated: 1 bytes"),
        (lambda f: (f / "fingerprint.json").unlink(), "lacks fingerprint.json; copy it again"),
        (lambda f: flip(f / "focus_step.onnx"), "focus_step.onnx was altered"),
        (lambda f: rewritten(f, lambda d: d["backend"].update(name="x")), "libaccelaes_x.so can't be loaded"),
        (lambda f: rewritten(f, lambda d: d["backend"].update(name="../x")), "no name"),
        (lambda f: rewritten(f, lambda d: d["geometries"][0]["contract"].update(tokens=7)), "contradicts itself"),
        (lambda f: linked(f / "fingerprint.json"), "is not a regular file"),
        (lambda f: rewritten(f, lambda d: latents(d).update(channels=400)), "have different sizes"),
        (lambda f: rewritten(f, lambda d: latents(d).update(height=25)), "have different sizes"),
        (lambda f: rewritten(f, lambda d: first_preset(d)["plans"].update({"9": "DD"})), "a plan of 2 steps for 9"),
        (lambda f: rewritten(f, lambda d: first_preset(d).update(clock="hours")), "clock or theta that is none"),
        (lambda f: rewritten(f, lambda d: first_preset(d)["programs"].pop("guide")), "lacks the program guide"),
    ],
)  # fmt: skip
def test_a_bundle_that_is_not_whole_is_refused(native, copied, spoil, said):
    spoil(copied)
    with pytest.raises(NativeError, match=said) as raised:
        native.open(copied, library=LIBRARY)
    assert raised.value.code == (4 if "loaded" in said else 2) and str(raised.value).endswith(".")


def test_a_sentence_is_utf8_whatever_bytes_a_file_had(native, copied):
    (copied / "manifest.json").write_bytes(b'{"schema_version": 12, "\xff\x1b[31m": 1}')
    with pytest.raises(NativeError, match="is damaged") as raised:
        native.open(copied, library=LIBRARY)
    assert "\x1b" not in str(raised.value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def test_a_library_that_is_missing_or_another_is_named(native, bundle, tmp_path):
    for library, said in [(b"/nowhere/libonnxruntime.so", "can't be loaded"), (b"libm.so.6", "is no ONNX Runtime")]:
        with pytest.raises(NativeError, match=said) as raised:
            native.open(bundle.path, library=library)
        assert raised.value.code == 4 and "options.library" in str(raised.value)
    with pytest.raises(NativeError, match=r"libaccelaes_onnxruntime.so can't be loaded.*options.engines"):
        native.open(bundle.path, library=LIBRARY, engines=str(tmp_path).encode())


def test_a_preset_that_keeps_something_else_is_refused(native, copied):
    rewritten(copied, lambda document: first_preset(document)["state"][0].update(name="x"))
    own = native.open(copied, library=LIBRARY)
    with pytest.raises(NativeError, match="which this release doesn't know"):
        own.run(SIGMAS, TIMESTEPS)
    own.close()


def test_a_bundle_without_presets_says_how_to_build_them(native, copied):
    rewritten(copied, without_presets)
    own = native.open(copied, library=LIBRARY)
    with pytest.raises(NativeError, match="has no presets; build it again with --presets"):
        own.run(SIGMAS, TIMESTEPS)
    own.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": b"nope"}, 'no preset "nope"; it has dense, stepcache'),
        ({"preset": b"drift:budget=12", "steps": 101}, "no plan of 101 steps; it has plans of 2 to 100"),
        ({"steps": 1}, "no plan of 1 steps"),
        ({"plan": b""}, "doesn't begin with a dense step"),
        ({"plan": b".DDDDD"}, "doesn't begin with a dense step"),
        ({"plan": b"DDDD0D"}, "leaves out block range 0, and the bundle has 0; build it with --block-ranges"),
        ({"plan": b"DDDDaD"}, "has the symbol 'a', which the preset dense"),
        ({"preset": b"ras", "plan": b"DDDDdD"}, "has the symbol 'd'"),
        ({"preset": b"accelaes", "plan": b"DDbDDD"}, "isn't dense up to step 5"),
        ({"plan": b"DDDDDD", "steps": 7}, "has 6 steps and 7 were asked for"),
        ({"images": 2}, "2 images were asked for.*takes 1 to 1.*--batch"),
        ({"images": -1}, "-1 images"),
    ],
)
def test_a_run_that_cannot_be_is_refused(opened, options, said):
    with pytest.raises(NativeError, match=said) as raised:
        opened.run(SIGMAS, TIMESTEPS, **options)
    assert raised.value.code == 2


@pytest.fixture(scope="module")
def plain(native, shapes_bundle):
    """A bundle that has nothing of its pipeline, and so no scheduler."""
    return native.open(shapes_bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)


def test_a_run_without_a_schedule_or_with_a_struct_of_no_size_is_refused(native, opened, plain):
    run = c_void_p()
    with pytest.raises(NativeError, match=r"no sigmas or no timesteps, and the bundle has no scheduler; give T \+ 1"):
        native.check(native.lib.accelaes_run_new(plain.handle, byref(RunOptions()), byref(run)))
    with pytest.raises(NativeError, match="set it to sizeof"):
        options = opened.options(SIGMAS, TIMESTEPS)
        options.size = 0
        native.check(native.lib.accelaes_run_new(opened.handle, byref(options), byref(run)))
    assert not run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i.pop("pooled_projections"), "no tensor pooled_projections"),
        (lambda i: i.pop("token_weights"), "has a mask: give token_weights"),
        (lambda i: i.update(latents=i["latents"][:, :, :4]), r"latents has the shape \[1, 4, 4, 24\]"),
        (lambda i: i.update(encoder_hidden_states=i["encoder_hidden_states"][:1]), "for 2 rows"),
        (lambda i: i.update(encoder_hidden_states=i["encoder_hidden_states"].astype(np.int64)), "doesn't take"),
        (lambda i: i.update(other=i["latents"]), "no input other"),
        (lambda i: i.update(token_weights=i["token_weights"][0]), r"token_weights has the shape \[40\]"),
        (lambda i: i.update(token_weights=i["token_weights"][:, :30]), "has 30 text tokens, and another tensor has 40"),
    ],
)  # fmt: skip
def test_input_that_does_not_fit_is_refused_and_the_run_takes_other(opened, bundle, change, said):
    given = setting(bundle, bundle.preset("accelaes"), "DDDDDD", seed=1)
    run = opened.run(given.sigmas, given.timesteps, preset=b"accelaes", plan=b"DDDDDD")
    inputs = dict(given.inputs)
    change(inputs)
    with pytest.raises(NativeError, match=said) as raised:
        run.input(**inputs)
    assert raised.value.code == 2
    with pytest.raises(NativeError, match="no input yet"):
        run.next()
    run.input(**given.inputs)
    assert run.next()[1]
    run.free()


def test_after_the_last_step_there_is_no_other(opened, bundle):
    given = setting(bundle, bundle.preset("dense"), "DD", seed=1)
    run = opened.run(given.sigmas, given.timesteps, plan=b"DD")
    run.input(**given.inputs)
    assert [run.next()[1], run.next()[1]] == [True, False]
    with pytest.raises(NativeError, match="carried out all of its 2 steps"):
        run.next()
    run.free()


def test_an_older_programs_smaller_struct_is_taken(native, opened, plain):
    """Structs grow at their end: what the caller doesn't know of is zero."""
    options = opened.options(SIGMAS, TIMESTEPS, plan=b"DDDDDD")
    small = ctypes.sizeof(ctypes.c_size_t) + ctypes.sizeof(ctypes.c_char_p)
    options.size = small  # size and preset alone: then there is no schedule
    run = c_void_p()
    with pytest.raises(NativeError, match="no sigmas"):
        native.check(native.lib.accelaes_run_new(plain.handle, byref(options), byref(run)))


def test_how_much_memory_a_run_takes_is_known_before(opened):
    found = []
    for preset in (b"dense", b"drift:budget=12"):
        plan = b"DDDDbb" if b"drift" in preset else b"DDDDDD"
        host, device = opened.run_bytes(SIGMAS, TIMESTEPS, preset=preset, plan=plan)
        found.append(host)
    # 12 cached tensors of 2 rows, 4 heads, 32 numbers a token: of 144 tokens, and with drift twice that and 144 more.
    dense, drift = found
    cached = 4 * 12 * 2 * 4 * 32 * 144
    assert cached < dense < cached + 300_000 and 3 * cached < drift < 3 * cached + 500_000 and device == 0


ROOT = Path(__file__).parents[2]


def program(name: str, *arguments: object) -> list[str]:
    """A program of this folder, as a command."""
    return [sys.executable, "-m", f"tests.native.{name}", *map(str, arguments)]


@pytest.mark.parametrize("seed", range(2))
def test_calls_in_any_order_give_statuses_and_never_crash(library, bundle, seed):
    """In a process of their own; 2,000 calls of them here."""
    command = program("random_calls", library, bundle.path, ONNXRUNTIME, seed, 1000)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_damaged_manifests_are_refused_or_opened_and_never_crash(library, copied):
    """Changes by chance, in a process of their own."""
    document = json.loads((copied / "manifest.json").read_text())
    command = program("damaged_manifests", library, copied, ONNXRUNTIME)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdin is not None and child.stdout is not None
    ends = {"refused": 0, "opened": 0}
    for chance in attempts(1_000):
        changed, touched = mutated(document, chance)
        child.stdin.write(json.dumps(changed) + "\n")
        child.stdin.flush()
        said = child.stdout.readline().strip()
        assert said in ends, (touched, child.poll())
        ends[said] += 1
    child.stdin.close()
    assert child.wait() == 0 and ends["refused"]


def shaped(tensors: list[dict], name: str, **changes: object) -> None:
    next(one for one in tensors if one["name"] == name).update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: shaped(d["geometries"][0]["contract"]["inputs"], "timestep", shape=["B", 4096]),
        lambda d: shaped(d["geometries"][0]["contract"]["inputs"], "timestep", dtype="int64"),
        lambda d: shaped(d["geometries"][0]["contract"]["inputs"], "focus_index", shape=["B", "n", 4096]),
        lambda d: shaped(d["geometries"][0]["contract"]["outputs"], "focus_prediction", shape=["B", "n", 4096]),
        lambda d: shaped(first_preset(d)["programs"]["advance"]["inputs"], "computed", shape=["B", 144, 4096]),
        lambda d: shaped(first_preset(d)["programs"]["guide"]["outputs"], "guided", dtype="fp16"),
    ],
)
def test_a_tensor_larger_than_what_it_is_given_is_refused_before_the_engine_reads_it(native, copied, bundle, change):
    rewritten(copied, change)
    opened = native.open(copied, library=LIBRARY, threads=1, skip_hashes=1)
    given = setting(bundle, bundle.preset(bundle.manifest.geometry.presets[0].name), "DD", seed=1)
    with pytest.raises(NativeError, match="of another type or size than this release has it; build the bundle again"):
        run = opened.run(given.sigmas, given.timesteps, plan=b"DD")
        run.input(**given.inputs)
        run.next()
    opened.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: encoder(d)["inputs"][0].update(shape=["b", "M", 64]),
        lambda d: encoder(d)["outputs"][0].update(dtype="int64"),
        lambda d: d["components"]["conditioning"]["outputs"][0].update(dtype="int64"),
        lambda d: d["geometries"][0]["vae"]["decoder"]["inputs"][0].update(shape=["b", 4, 24, 2400]),
        lambda d: d["geometries"][0]["vae"]["decoder"]["inputs"][0].update(dtype="int64"),
        lambda d: d["geometries"][0]["vae"]["latents"]["outputs"][0].update(dtype="int64"),
    ],
)
def test_so_is_a_components(native, copied, change):
    rewritten(copied, change)
    opened = native.open(copied, library=LIBRARY, threads=1, skip_hashes=1)
    run = opened.run(None, None, steps=2)
    with pytest.raises(NativeError, match="of another type or size than this release has it; build the bundle again"):
        run.prompt("a red star")
        run.picture(opened.facts.picture_height, opened.facts.picture_width)
    run.free()
    opened.close()


def encoder(document: dict) -> dict:
    return document["components"]["encoders"]["text_encoder"]["graph"]


def test_facts_and_names_of_nothing_are_nothing(native: Native):
    assert native.lib.accelaes_preset_name(None, 0) is None
    count = c_int()
    assert not native.lib.accelaes_run_focus(None, byref(count)) and count.value == 0
    native.lib.accelaes_close(None)
    native.lib.accelaes_run_free(None)
    native.lib.accelaes_status_free(None)
    assert native.lib.accelaes_status_code(None) == 0


@pytest.mark.parametrize("count", [15, pytest.param(400, marks=pytest.mark.native)])
def test_a_graph_that_is_cut_off_or_changed_is_refused_or_run_and_never_a_crash(
    library: Path, bundle: Bundle, count: int
):
    """Its manifest is made to agree: nothing but the engine can tell."""
    command = [sys.executable, "-m", "tests.native.damaged_engines", library, bundle.path, ONNXRUNTIME, 0, count]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > count / 2
