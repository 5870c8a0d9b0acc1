"""Arrows point downwards: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "accelaes_export"
BUILD_WING = {"build_manifest", "build_plan", "builder", "graph", "backbones", "verification", "stages", "resources"}

# Part of the package: the parts it may import from this package.
ALLOWED = {
    "errors": set(),
    "contract": set(),
    "hashing": set(),
    "given_files": {"errors"},
    "user_files": {"errors"},
    "replacing": set(),
    "signing": {"errors", "given_files"},
    "own_bundles": set(),
    "dtypes": set(),
    "fingerprint": {"dtypes", "errors", "given_files"},
    "memory": {"errors"},
    "stages": {"errors", "given_files", "hashing"},
    "resources": {"errors", "progress"},
    "progress": set(),
    "options": {"errors"},
    "manifest": {"contract"},
    "manifest_checks": {"contract", "manifest"},
    "patches": {"manifest"},
    "policies": {"errors", "policies"},
    "recipes": {"errors", "manifest", "options", "policies"},
    "attention_choice": {"backends", "contract", "errors", "plugins"},
    "backends": {"backends", "contract", "dtypes", "errors", "memory", "plugins"},
    "bundle": {"backends", "contract", "errors", "given_files", "hashing", "manifest"}
    | {"manifest_checks", "memory", "own_bundles", "replacing", "signing"},
    "bundle_writing": {"bundle", "errors", "given_files", "hashing", "manifest"}
    | {"own_bundles", "replacing", "signing", "user_files"},
    "runtime": {"backends", "bundle", "contract", "dtypes", "errors", "fingerprint", "given_files", "manifest"}
    | {"options", "user_files", "patches", "policies", "recipes", "runtime"},
    "example_inputs": {"contract", "dtypes"},
    "profiling": {"backends", "bundle", "contract", "dtypes", "errors", "example_inputs", "manifest"}
    | {"policies", "profiling", "progress", "runtime"}
    # Peers are the diffusers model itself, which the build wing makes; nothing else of it is touched.
    | {"verification"},
    "quality": {"bundle", "errors", "given_files", "manifest", "policies", "profiling", "progress", "quality"}
    | {"runtime", "user_files"},
    "report": {"errors", "manifest", "policies", "profiling", "quality", "report", "runtime"},
    "backbones": {
        "backbones",
        "contract",
        "dtypes",
        "errors",
        "given_files",
        "hashing",
        "manifest",
        "plugins",
        "recipes",
    },
    "graph": {"backbones", "contract", "dtypes", "errors", "example_inputs", "graph", "manifest", "plugins"},
}


def imported(path: Path) -> set[str]:
    """Parts of this package that a file imports, at its top or inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; spell the package out"
            names = [node.module or ""]
            if node.module == "accelaes_export":
                names = [f"accelaes_export.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "accelaes_export" and rest:
                parts.add(rest.split(".")[0])
    return parts - {"__version__"}


def files_of(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part):
    files = files_of(part)
    assert files
    for path in files:
        assert imported(path) <= ALLOWED[part], f"{path.name} reaches up"


def test_the_run_wing_never_touches_the_build_wing():
    for part in ("runtime", "policies", "backends", "bundle"):
        for path in files_of(part):
            assert not imported(path) & BUILD_WING, path


def test_measuring_touches_the_build_wing_in_one_place():
    touching = {path.name for path in files_of("profiling") if imported(path) & BUILD_WING}
    assert touching == {"profile.py"}


def test_plugins_import_nothing_of_the_rest():
    for path in (PACKAGE.parent / "plugins").rglob("*.py"):
        assert imported(path) <= {"plugins"}, path


def test_nothing_is_unpickled_anywhere():
    forbidden = ("import pickle", "torch.load(", "weights_only=False", "trust_remote_code=True", "joblib")
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in source], path
