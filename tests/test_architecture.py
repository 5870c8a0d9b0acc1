"""Arrows point downwards: who may import whom, read from the source. docs/architecture.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "accelaes_export"

BELOW_ALL = {"errors", "checks"}
BRIDGE = BELOW_ALL | {"contract", "backends", "bundle"}
RUN = BRIDGE | {"files", "options", "policies", "recipes"}

# A room of the package: the other rooms it may import. Lower ones first.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "checks": {"errors"},
    "progress": set(),
    "options": BELOW_ALL,
    "memory": BELOW_ALL,
    "files": BELOW_ALL,
    "native_sdk": BELOW_ALL | {"files"},
    "contract": BELOW_ALL | {"files", "policies"},
    "policies": BELOW_ALL,
    "recipes": BELOW_ALL | {"contract", "options", "policies"},
    "backends": BELOW_ALL | {"contract", "memory", "plugins"},
    "bundle": BELOW_ALL | {"files", "contract", "memory", "backends"},
    "runtime": RUN,
    "backbones": BELOW_ALL | {"files", "contract", "plugins", "recipes"},
    "graph": BELOW_ALL | {"contract", "policies", "backbones", "plugins"},
    "building": RUN | {"memory", "progress", "runtime", "backbones", "graph", "plugins"},
    "tuning": RUN | {"progress", "runtime"},
    "sparsity": RUN | {"plugins", "progress", "runtime", "backbones", "graph", "building", "tuning"},
    "measure/profiling": BRIDGE | {"policies", "progress", "runtime", "building"},
    "measure/quality": BELOW_ALL | {"files", "contract", "bundle"} | {"policies", "progress", "runtime"}
    | {"measure/profiling"},
    "measure/report": BELOW_ALL | {"contract", "policies", "runtime", "measure/profiling", "measure/quality"},
    "cli": RUN | {"memory", "native_sdk", "progress", "runtime", "backbones", "building", "plugins"}
    | {"tuning", "sparsity", "measure/profiling", "measure/quality", "measure/report"},
}  # fmt: skip

# One file of a room that may do what the others may not.
BUILDS = {"profile.py"}  # of measure/profiling: peers are the diffusers model itself, which verification makes


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop("")
    return found


MODULES = modules()


def room_of(module: str) -> str:
    first, *rest = module.split(".")
    return f"{first}/{rest[0]}" if first == "measure" and rest else first


def imports(path: Path, *, at_the_top: bool = False) -> Iterator[str]:
    """Modules of this package that a file imports, at its top or inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; spell the package out"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "accelaes_export" or rest in ("", "__version__"):
                continue
            while rest not in MODULES and "." in rest:
                rest = rest.rpartition(".")[0]
            yield rest


def test_every_room_is_guarded():
    rooms = {room_of(module) for module in MODULES} - {"measure"}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room):
    for module, path in MODULES.items():
        if room_of(module) == room:
            reached = {room_of(name) for name in imports(path)} - {room}
            assert reached <= ALLOWED[room], f"{module} reaches up to {sorted(reached - ALLOWED[room])}"


def test_rooms_stand_upon_each_other_without_a_circle():
    order = list(TopologicalSorter(ALLOWED).static_order())
    assert order.index("errors") < order.index("runtime") < order.index("cli")


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {name for name in imports(path, at_the_top=True) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())


def test_the_run_wing_never_touches_the_build_wing():
    for room in ("runtime", "policies", "backends", "bundle", "contract"):
        assert not ALLOWED[room] & {"building", "graph", "backbones"}


def test_measuring_touches_the_build_wing_in_one_place():
    touching = {
        path.name
        for module, path in MODULES.items()
        if room_of(module).startswith("measure") and "building" in {room_of(name) for name in imports(path)}
    }
    assert touching == BUILDS


def test_plugins_import_nothing_of_the_rest():
    for path in (PACKAGE.parent / "plugins").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= {"plugins"}, path


def test_nothing_is_unpickled_anywhere():
    forbidden = ("import pickle", "torch.load(", "weights_only=False", "trust_remote_code=True", "joblib")
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in source], path
