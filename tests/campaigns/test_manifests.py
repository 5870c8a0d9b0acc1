"""Damaged manifests: each is refused in a sentence, or opens and shows itself; none draws another picture."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import accelaes_export as ax
from accelaes_export.bundle.reading import MANIFEST, Bundle, open_bundle
from accelaes_export.cli import main
from accelaes_export.errors import AccelAesError, BundleError, InputError
from accelaes_export.policies import AccelAes
from tests.campaigns.mutations import mutated
from tests.campaigns.size import attempts
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import difference, sample

pytestmark = pytest.mark.campaign

# What is in no other statement of a manifest, and makes a picture another one: which words weigh, and how much.
FREE = {"anchors", "token_scorer"}


@pytest.fixture(scope="module")
def damaged(shapes_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of links to another's files, whose manifest can be written over."""
    folder = tmp_path_factory.mktemp("damaged") / "shapes"
    folder.mkdir()
    (folder / "presets").mkdir()
    for name in shapes_bundle.manifest.files:
        os.link(shapes_bundle.path / name, folder / name)
    return folder


def test_a_damaged_manifest_is_refused_or_shown(shapes_bundle: Bundle, damaged: Path) -> None:
    document = json.loads((shapes_bundle.path / MANIFEST).read_text())
    ends: Counter[str] = Counter()
    for chance in attempts(10_000):
        changed, touched = mutated(document, chance)
        (damaged / MANIFEST).write_text(json.dumps(changed))
        try:
            open_bundle(damaged, check_hashes=False)
        except BundleError as error:
            assert len(str(error)) < 2000, touched
            ends["refused"] += 1
            continue
        for more in ([], ["--json"], ["--steps", "9", "--tensors"]):
            result = CliRunner().invoke(main, ["inspect", str(damaged), *more])
            assert result.exit_code in (0, 2), (touched, result.stderr)
            assert "error: unexpected" not in result.stderr, (touched, result.stderr)
            ends[f"inspected with {result.exit_code}"] += 1
    print(dict(ends))
    assert ends["refused"]


def test_a_damaged_manifest_that_opens_draws_the_same_picture_or_none(shapes_bundle: Bundle, damaged: Path) -> None:
    document = json.loads((shapes_bundle.path / MANIFEST).read_text())
    pipe, policy, ends = load_shapes(), AccelAes(mask_step=1, warmup=2), Counter[str]()
    ax.accelerate(pipe, shapes_bundle, policy)
    picture = sample(pipe, steps=7)
    for chance in attempts(3_000):
        changed, touched = mutated(document, chance)
        (damaged / MANIFEST).write_text(json.dumps(changed))
        try:
            ax.accelerate(pipe, open_bundle(damaged, check_hashes=False), policy, weights="bundle")
            made = sample(pipe, steps=7)
        except InputError:
            ends["refused"] += 1
        except AccelAesError as error:
            ends[type(error).__name__] += 1
        else:
            same = difference(made, picture) == 0
            ends["same" if same else "another"] += 1
            assert same or {place[0] for place in touched} & FREE, touched
    print(dict(ends))
    assert ends["same"] and ends["refused"]
