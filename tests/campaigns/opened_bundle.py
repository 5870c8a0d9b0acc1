"""A bundle that is opened and run for one step in a process of its own: what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

from accelaes_export.bundle.reading import MANIFEST
from tests.campaigns.killed_build import tiny_recipe


def open_and_run(folder: Path, verdict: Path) -> None:
    """Write to `verdict` how opening and one dense step ended: "ran", "refused: ..." or a traceback."""
    import torch

    from accelaes_export.bundle.reading import open_bundle
    from accelaes_export.contract.dtypes import torch_dtype
    from accelaes_export.contract.example_inputs import example_inputs
    from accelaes_export.errors import AccelAesError

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the readers' own words
    torch.set_num_threads(1)
    try:
        bundle = open_bundle(folder)
        session = bundle.session()
        n = session.contract.tokens
        inputs, sizes = example_inputs(session.contract, n), session.contract.sizes(n)
        outputs = {
            spec.name: torch.empty(spec.sized(sizes), dtype=torch_dtype(spec.dtype))
            for spec in session.contract.outputs
        }
        session.run(inputs, outputs)
    except AccelAesError as error:
        verdict.write_text(f"refused: {error}")
    except BaseException:
        verdict.write_text(traceback.format_exc())
    else:
        verdict.write_text("ran")


def rehash(folder: Path) -> None:
    """Give the manifest the hashes and sizes that the files have now, as somebody with bad intent would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, listed in manifest["files"].items():
        content = (folder / name).read_bytes()
        listed |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def tiny(folder: Path) -> None:
    """Build the smallest bundle there is, without a comparison."""
    from accelaes_export.building.builder import build

    build(model=tiny_recipe(), random_weights=True, output=folder, verify=False)
