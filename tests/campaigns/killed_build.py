"""A build in a process of its own that is killed before its k-th file operation, or from outside."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelaes_export.recipes import BuildRecipe

_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}
TINY = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 32,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}


def tiny_recipe() -> BuildRecipe:
    """Of the smallest model there is."""
    from accelaes_export.recipes import load

    changes = {
        "transformer_config": TINY,
        "resolution": (16, 16),
        "buckets": (0.5,),
        "affinity_blocks": None,
        "presets": (),
    }
    return load("shapes").model_copy(update=changes)


def build(folder: Path, seed: int, *, force: bool = True, kill_before: int | None = None, signal: int = 9) -> None:
    """Build a tiny model at `folder`; below its parent, file operations are counted.

    Args:
        seed: of its random weights: another build.
        kill_before: the file operation before which this process sends itself `signal`.
    """
    from accelaes_export.building.builder import build as really_build

    recipe = tiny_recipe()
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (an interrupted process says where)
    counted, ours = 0, str(folder.parent)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        if event in _OPERATIONS and any(ours in str(argument) for argument in arguments[:2]):
            if counted == kill_before:
                os.kill(os.getpid(), signal)
            counted += 1

    sys.addaudithook(count)  # there is no way back: this process is for one build
    _export_once(folder.parent.parent / f"exported-{seed}")
    really_build(model=recipe, random_weights=True, seed=seed, output=folder, verify=False, force=force)
    (folder.parent / "operations").write_text(str(counted))


def _export_once(kept: Path) -> None:
    """Tracing takes most of a build's time and touches no file: its outcome is kept, and copied from then on."""
    from accelaes_export.graph import export

    trace, save_onnx = export.trace, export.save_onnx

    def saved(program: Any, contract: Any, folder: Path, *arguments: Any, **options: Any) -> None:
        if program is not None:
            save_onnx(program, contract, folder, *arguments, **options)
            shutil.copytree(folder, kept)
        else:
            shutil.copytree(kept, folder, dirs_exist_ok=True)

    export.trace = lambda step: None if kept.exists() else trace(step)  # type: ignore[assignment, return-value]
    export.save_onnx = saved  # type: ignore[assignment]
