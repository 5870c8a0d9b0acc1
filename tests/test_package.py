"""The package as a user meets it: what an import costs, what a wheel holds, which Python reads it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import accelaes_export

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers", "numpy", "tensorrt_rtx")


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter at the repository's root."""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the tree, so that neither stale nor new build folders matter."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "built", "*.egg-info")
    for name in ("accelaes_export", "plugins", "engines"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "engines" / "built" / "leftover").mkdir(parents=True)
    (source / "engines" / "built" / "leftover" / "engine.onnx").write_bytes(b"0")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_importing_the_package_loads_no_heavy_library() -> None:
    loaded = run_python(f"import sys, accelaes_export; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, accelaes_export.cli as cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        f"print('loaded', [m for m in {(*HEAVY, 'pydantic', 'yaml')!r} if m in sys.modules])"
    )
    assert run_python(code).strip().splitlines()[-1] == "loaded []"


def test_every_public_name_is_there_and_an_unknown_one_is_not() -> None:
    for name in accelaes_export.__all__:
        assert getattr(accelaes_export, name) is not None
    with pytest.raises(AttributeError, match="offers"):
        accelaes_export.no_such_name  # noqa: B018


def test_the_wheel_installs_nothing_beside_accelaes_export(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"accelaes_export", f"accelaes_export-{accelaes_export.__version__}.dist-info"}
    sdk = "accelaes_export/engines/cpp/tests/"  # which whoever builds the native runtime runs
    assert not [name for name in wheel.namelist() if "built" in name or ("tests" in name and not name.startswith(sdk))]


def test_the_wheel_holds_every_module_of_the_tree(wheel: zipfile.ZipFile) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "accelaes_export").rglob("*.py")}
    assert expected <= set(wheel.namelist())


def test_the_wheel_carries_the_recipes_and_the_shipped_checkpoint(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {f"accelaes_export/engines/recipes/{name}.yaml" for name in ("sd3", "shapes")} <= names
    for file in ("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"):
        assert f"accelaes_export/engines/checkpoints/shapes/{file}" in names


def test_the_wheel_carries_the_published_figures(wheel: zipfile.ZipFile) -> None:
    files = {f"accelaes_export/engines/published/{name}.yaml" for name in ("accelaes", "diffsparse", "ras")}
    assert files <= set(wheel.namelist())


def test_the_wheel_carries_the_reports_templates(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "accelaes_export" / "measure" / "report" / "templates"
    files = {f"accelaes_export/measure/report/templates/{path.name}" for path in folder.iterdir()}
    assert len(files) == 6 and files <= set(wheel.namelist())


def test_the_wheel_carries_the_attention_plugin_with_its_tables_and_its_cpp_sources(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "plugins" / "sparse_query_attention"
    kinds = (".py", ".json", ".cpp", ".h", ".txt")
    files = [path.relative_to(ROOT) for path in source.rglob("*") if path.suffix in kinds]
    assert len(files) > 20
    assert {f"accelaes_export/{path.as_posix()}" for path in files} <= set(wheel.namelist())


def test_the_wheel_carries_the_native_runtimes_sources(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "engines" / "cpp"
    files = [path.relative_to(ROOT) for path in source.rglob("*") if path.is_file() and path.name != ".clang-format"]
    assert len(files) > 60
    assert {f"accelaes_export/{path.as_posix()}" for path in files} <= set(wheel.namelist())


@pytest.mark.parametrize("folder", ["accelaes_export", "plugins", "engines", "tests", "examples", "benchmarks"])
def test_every_file_is_python_3_10_syntax(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def test_cli_py_is_the_same_command() -> None:
    finished = subprocess.run(
        [sys.executable, "cli.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == f"accelaes-export {accelaes_export.__version__}"


def test_the_oldest_versions_that_are_declared_are_those_that_are_tried() -> None:
    """`make test-minimum` installs constraints-minimum.txt; torch's oldest is tried by hand."""

    def versions(text: str, pattern: str) -> dict[str, list[int]]:
        found = {name: [int(part) for part in number.split(".")] for name, number in re.findall(pattern, text, re.M)}
        return {name: [*parts, 0, 0][:3] for name, parts in found.items()}

    declared = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2]
    own, _, extras = declared.partition("]\n")
    bounds = versions(own, r'"([\w-]+)>=([\d.]+)"')
    bounds |= {"onnxruntime": versions(extras, r'"(onnxruntime)>=([\d.]+)"')["onnxruntime"]}
    del bounds["torch"]
    assert versions((ROOT / "constraints-minimum.txt").read_text(), r"^([\w-]+)==([\d.]+)$") == bounds
