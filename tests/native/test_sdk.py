"""What others build on: headers for C and C++, the installed package, the example, and nothing else exported."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.native.conftest import ONNXRUNTIME, PRESETS, SOURCES

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
