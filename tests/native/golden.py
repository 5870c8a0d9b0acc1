"""Golden trajectories: settings by chance as files, with what Python makes of each, for engines/cpp/tests/golden.cpp.

    python -m tests.native.golden BUNDLE FOLDER [COUNT]

and the other way: what the native runtime wrote beside them is compared with Python's.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import accelaes_export as ax
from accelaes_export.bundle.reading import Bundle
from tests.native.reference import Setting, setting, walk

ALLOWED = 1e-4  # of the latents' range


def any_setting(bundle: Bundle, chance: random.Random, presets: tuple[str, ...] = ()) -> Setting:
    """A preset of these (or any), a number of steps or a plan by hand, a scale, with or without guidance."""
    preset = chance.choice([own for own in bundle.manifest.geometry.presets if not presets or own.name in presets])
    plan = preset.plans[chance.choice([T for T in preset.plans if 3 <= T <= 20])]
    if preset.focus and not preset.focus.moving and chance.random() < 0.3:
        plan = "DDDDDD" + "".join(chance.choice("Dabc..") for _ in range(chance.randint(1, 8)))
    scale, guided = chance.choice([1.0, 4.5, 9.0]), chance.random() < 0.8
    return setting(bundle, preset, plan, seed=chance.randint(0, 10**6), scale=scale, guided=guided)


def write(bundle: Bundle, given: Setting, path: Path) -> None:
    """One setting, its inputs and Python's latents and focus tokens after every step."""
    arrays = {f"input.{name}": np.ascontiguousarray(array) for name, array in given.inputs.items()}
    arrays |= {"sigmas": given.sigmas, "timesteps": given.timesteps}
    for i, (latents, focus) in enumerate(walk(bundle, given)):
        arrays[f"step.{i}.latents"] = np.ascontiguousarray(latents)
        if focus is not None:
            arrays[f"step.{i}.focus"] = np.ascontiguousarray(focus)
    described = {
        "preset": given.preset.name,
        "plan": given.plan,
        "images": given.images,
        "guided": given.guided,
        "scale": given.scale,
    }
    save_file(arrays, path, metadata={"setting": json.dumps(described)})


def write_all(bundle: Bundle, folder: Path, chances: Iterator[random.Random], presets: tuple[str, ...] = ()) -> int:
    """How many were written."""
    folder.mkdir(exist_ok=True)
    count = 0
    for count, chance in enumerate(chances, 1):
        write(bundle, any_setting(bundle, chance, presets), folder / f"{count:03}.safetensors")
    return count


def furthest_apart(folder: Path) -> float:
    """How far what the native runtime wrote is from Python's at most, as a part of the latents' range.

    Raises:
        AssertionError: a step is missing, or its focus tokens are others.
    """
    furthest = 0.0
    for path in folder.glob("*.safetensors"):
        golden, native = load_file(path), load_file(path.with_suffix(".native"))
        with safe_open(path.with_suffix(".native"), "np") as file:
            symbols = file.metadata()["symbols"]
        steps = {name for name in golden if name.startswith("step.")}
        assert steps == set(native) and len(symbols) == len([name for name in steps if name.endswith("latents")])
        for name in steps:
            wanted, own = golden[name].ravel(), native[name]
            if name.endswith("focus"):
                assert np.array_equal(wanted, own), (path, name)
            else:
                furthest = max(furthest, float(np.abs(wanted - own).max() / max(1.0, np.abs(wanted).max())))
    return furthest


if __name__ == "__main__":
    source, target, count = sys.argv[1], Path(sys.argv[2]), int((sys.argv[3:] or ["100"])[0])
    print(write_all(ax.open(source), target, (random.Random(k) for k in range(count))), "settings written")
