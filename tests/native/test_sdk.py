"""What others build on: headers for C and C++, the installed package, the example, and nothing else exported."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from accelaes_export.cli import main
from accelaes_export.runtime.generate import generate
from tests.native.building import ONNXRUNTIME, SOURCES
from tests.native.conftest import PRESETS

pytestmark = pytest.mark.xdist_group("native")

PROGRAM = """
#include <accelaes.hpp>
#include <cstdio>
int main(int, char** arguments) {
    auto options = accelaes::sized<accelaes_open_options>();
    options.library = arguments[2];
    accelaes::Bundle bundle(arguments[1], options);
    try {
        auto wanted = accelaes::sized<accelaes_run_options>();
        wanted.preset = "nope";
        bundle.run(wanted);
    } catch (const accelaes::Error& error) {
        std::printf("%d %d %s\\n", bundle.facts().tokens, error.code, error.what());
    }
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(other CXX)
find_package(accelaes REQUIRED)
add_executable(other other.cpp)
target_compile_features(other PRIVATE cxx_std_17)
target_link_libraries(other PRIVATE accelaes::accelaes)
"""


def ran(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_project_of_somebody_elses_finds_the_installed_package(library, bundle, tmp_path):
    ran("cmake", "--install", library.parent, "--prefix", tmp_path / "sdk")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "other.cpp").write_text(PROGRAM)
    ran("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={tmp_path / 'sdk'}")
    ran("cmake", "--build", tmp_path / "build")
    said = ran(tmp_path / "build" / "other", bundle.path, ONNXRUNTIME)
    assert said.startswith(f'144 2 Bundle {bundle.path} has no preset "nope"')


def test_pkg_config_tells_where_the_installed_library_is(library, bundle, tmp_path, monkeypatch):
    ran("cmake", "--install", library.parent, "--prefix", tmp_path / "sdk")
    (folder,) = (tmp_path / "sdk").rglob("pkgconfig")
    monkeypatch.setenv("PKG_CONFIG_PATH", str(folder))
    flags = ran("pkg-config", "--cflags", "--libs", "accelaes").split()
    (tmp_path / "other.cpp").write_text(PROGRAM)
    rpath = f"-Wl,-rpath,{folder.parent}"
    ran("g++", "-std=c++17", tmp_path / "other.cpp", *flags, rpath, "-o", tmp_path / "other")
    assert ran(tmp_path / "other", bundle.path, ONNXRUNTIME).startswith("144 2 Bundle")


def test_sdk_lays_out_what_builds_by_itself(tmp_path):
    result = CliRunner().invoke(main, ["sdk", "-o", str(tmp_path / "sdk")])
    assert result.exit_code == 0 and f"Next: {tmp_path / 'sdk' / 'build.sh'} PREFIX" in result.stdout, result.stderr
    ran(tmp_path / "sdk" / "build.sh", tmp_path / "installed")
    assert list((tmp_path / "installed").rglob("libaccelaes.so")) and list((tmp_path / "installed").rglob("accelaes.h"))
    again = CliRunner().invoke(main, ["sdk", "-o", str(tmp_path / "sdk")])
    assert again.exit_code == 2 and "is there already, and isn't empty; name another folder" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["installed", "sdk"], "nothing beside it"


def test_the_example_draws_the_picture_of_a_prompt(library, bundle, tmp_path):
    program = library.parent / "accelaes_draw"
    if not program.is_file():
        pytest.skip("libstb-dev isn't here")
    text, path = "an intricate red star on the left, plain blue background", tmp_path / "star.png"
    more = ("--preset", "accelaes", "--seed", "3", "--library", ONNXRUNTIME, "--output", path)
    said = ran(program, bundle.path, text, *more).splitlines()
    assert said[0] == bundle.preset("accelaes").plans[28] and "red 1.00" in said and said[-1] == f"Wrote {path}"
    wanted = np.asarray(generate(bundle, text, policy="accelaes", steps=28, seed=3).image).astype(int)
    assert np.abs(np.asarray(Image.open(path)).astype(int) - wanted).max() <= 1
    wrong = subprocess.run([program, bundle.path, text, "--what"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --what has no value")


def test_rust_draws_it_through_the_c_interface(library, bundle, tmp_path):
    if shutil.which("rustc") is None:
        pytest.skip("rustc isn't here")
    program, folder = tmp_path / "draw", library.parent
    rpath = f"link-args=-Wl,-rpath,{folder}"
    ran("rustc", "-O", SOURCES / "examples/draw.rs", "-o", program, "-L", folder, "-l", "accelaes", "-C", rpath)
    made = subprocess.run([program, bundle.path, "a red star", ONNXRUNTIME], capture_output=True, check=True).stdout
    wanted = np.asarray(generate(bundle, "a red star", policy="dense", steps=28, seed=0).image).astype(int)
    head, pixels = made[: made.index(b"255\n") + 4], made[made.index(b"255\n") + 4 :]
    assert head == b"P6 48 48 255\n"
    assert np.abs(np.frombuffer(pixels, np.uint8).reshape(48, 48, 3).astype(int) - wanted).max() <= 1


def test_the_server_draws_for_several_guests_and_tells_what_is_wrong(library, bundle):
    program = library.parent / "accelaes_serve"
    if not program.is_file():
        pytest.skip("libcpp-httplib-dev isn't here")
    with subprocess.Popen([program, bundle.path, "0", ONNXRUNTIME, "1"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            asked = address + "a+red+star&preset=drift:budget%3D8&seed=5"
            with ThreadPoolExecutor(4) as guests:
                drawn = list(guests.map(lambda _: urlopen(asked).read(), range(4)))
            assert len(set(drawn)) == 1 and Image.open(BytesIO(drawn[0])).size == (48, 48)
            for wrong, said in (("a&preset=x", 'has no preset "x"'), ("", "no prompt"), ("a&seed=z", 'seed is "z"')):
                with pytest.raises(HTTPError) as error:
                    urlopen(address + wrong)
                assert error.value.code == 400 and said in error.value.read().decode()
        finally:
            server.kill()


def test_the_header_is_plain_c(tmp_path):
    (tmp_path / "c.c").write_text("#include <accelaes.h>\nint main(void) { return accelaes_status_code(0); }\n")
    strict = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    ran("gcc", *strict, "-I", SOURCES / "include", tmp_path / "c.c")


def test_nothing_but_the_header_is_exported(library):
    exported = re.findall(r" [TDBVW] (\w+)", ran("nm", "-D", "--defined-only", library))
    declared = re.findall(r"\b(accelaes_\w+)\(", (SOURCES / "include" / "accelaes.h").read_text())
    assert set(exported) == set(declared)


def test_the_example_shows_a_time_for_every_preset(library, bundle):
    said = ran(library.parent / "accelaes_bench", bundle.path, ONNXRUNTIME, "1", "1")
    rows = said.splitlines()[1:]
    assert len(rows) == len(PRESETS)
    for preset, row in zip(PRESETS, rows, strict=True):
        assert row.startswith(preset[:24]) and float(row[24:].split()[0]) > 0 and row.split()[-1].startswith("D")


def test_the_places_in_onnx_runtimes_table_are_those_of_its_header(tmp_path):
    """Where the header is there (libonnxruntime-dev)."""
    header = Path("/usr/include/onnxruntime/onnxruntime_c_api.h")
    if not header.is_file():
        pytest.skip(f"{header} isn't here")
    names = {
        "get_error_message": "GetErrorMessage", "create_env": "CreateEnv", "create_session": "CreateSession",
        "create_session_options": "CreateSessionOptions", "set_intra_op_threads": "SetIntraOpNumThreads",
        "set_graph_optimization_level": "SetSessionGraphOptimizationLevel", "run_with_binding": "RunWithBinding",
        "create_tensor_with_data": "CreateTensorWithDataAsOrtValue", "create_memory_info": "CreateMemoryInfo",
        "release_env": "ReleaseEnv", "release_status": "ReleaseStatus", "release_memory_info": "ReleaseMemoryInfo",
        "release_session": "ReleaseSession", "release_value": "ReleaseValue", "bind_input": "BindInput",
        "release_session_options": "ReleaseSessionOptions", "add_session_config_entry": "AddSessionConfigEntry",
        "create_io_binding": "CreateIoBinding", "release_io_binding": "ReleaseIoBinding", "bind_output": "BindOutput",
    }  # fmt: skip
    table = (SOURCES / "engines/onnxruntime/api.hpp").read_text()
    places = dict(re.findall(r"^    (\w+) = (\d+),", table, re.MULTILINE))
    assert places.keys() == names.keys()
    checks = "".join(
        f"static_assert(offsetof(OrtApi, {names[own]}) == {place} * sizeof(void*));\n" for own, place in places.items()
    )
    (tmp_path / "places.cpp").write_text(f"#include <cstddef>\n#include <onnxruntime_c_api.h>\n{checks}")
    ran("g++", "-std=c++17", "-fsyntax-only", "-I", header.parent, tmp_path / "places.cpp")
