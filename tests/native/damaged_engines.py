"""Bundles whose graphs were cut off or changed, by somebody who wrote their manifest anew: opened and run natively.

    python -m tests.native.damaged_engines LIBRARY BUNDLE ONNXRUNTIME SEED COUNT

Prints how many were refused, when they were opened or run. A crash is this process's own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from tests.native.library import Native, NativeError

MANIFEST = "manifest.json"


def linked(source: Path, target: Path) -> None:
    """The same bundle, its files as links but for the manifest."""
    shutil.copytree(source, target, copy_function=os.link)
    (target / MANIFEST).unlink()
    shutil.copyfile(source / MANIFEST, target / MANIFEST)


def damaged(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        # Graphs describe themselves at their beginning and end; between lie numbers.
        near = min(len(changed), 4096)
        at = chance.choice([chance.randrange(near), len(changed) - 1 - chance.randrange(near)])
        changed[at] = chance.randrange(256)
    return bytes(changed)


def damage(bundle: Path, chance: random.Random) -> None:
    """One of the bundle's graphs, and what the manifest says of it."""
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    name = chance.choice([name for name in manifest["files"] if name.endswith(".onnx")])
    data = damaged((bundle / name).read_bytes(), chance)
    (bundle / name).unlink()
    (bundle / name).write_bytes(data)
    manifest["files"][name] |= {"size": len(data), "sha256": sha256(data).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def tried(native: Native, bundle: Path, runtime: bytes) -> None:
    """A picture of a few steps by every preset."""
    opened = native.open(bundle, library=runtime, threads=1)
    try:
        for preset in opened.presets:
            run = opened.run(None, None, preset=preset.encode(), steps=8)
            try:
                run.prompt("a red star")
                while run.next()[1]:
                    pass
                run.picture(opened.facts.picture_height, opened.facts.picture_width)
            finally:
                run.free()
    finally:
        opened.close()


def main(library: str, bundle: str, runtime: str, seed: str, count: str) -> None:
    native, refused = Native(Path(library)), 0
    for k in range(int(seed), int(seed) + int(count)):
        with tempfile.TemporaryDirectory(dir=Path(bundle).parent) as folder:
            other = Path(folder) / "bundle"
            linked(Path(bundle), other)
            damage(other, random.Random(k))
            try:
                tried(native, other, runtime.encode())
            except NativeError:
                refused += 1
    print(refused)


if __name__ == "__main__":
    main(*sys.argv[1:])
