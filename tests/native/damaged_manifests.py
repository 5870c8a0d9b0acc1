"""Opens a bundle with every manifest of standard input: python -m tests.native.damaged_manifests LIBRARY BUNDLE ORT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.native.library import Native, NativeError

LATENTS = np.zeros((1, 4, 24, 24), np.float32)
IDS = np.ones((2, 32), np.int64)


def main(library: str, bundle: str, runtime: str) -> None:
    native, folder = Native(Path(library)), Path(bundle)
    for line in sys.stdin:
        (folder / "manifest.json").write_text(line)
        try:
            opened = native.open(folder, library=runtime.encode(), skip_hashes=1)
        except NativeError as error:
            assert error.code in (1, 2, 4) and str(error), error
            print("refused", flush=True)
            continue
        for name in opened.presets:
            try:
                run = opened.run([1.0] * 101, [1.0] * 100, preset=name.encode())
            except NativeError as error:
                assert error.code in (1, 2, 4)
                continue
            try:
                run.input(
                    latents=LATENTS, **{f"{tokenizer}.input_ids": IDS for tokenizer in ("tokenizer", "tokenizer_2")}
                )
                run.picture(opened.facts.picture_height, opened.facts.picture_width)
            except NativeError as error:
                assert error.code in (1, 2, 4)
            run.free()
        opened.close()
        print("opened", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
