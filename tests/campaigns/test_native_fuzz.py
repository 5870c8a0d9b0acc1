"""Manifests, tokenizers and prompts changed by chance: read or refused in a sentence, and no sanitizer finds anything.

With clang the same targets are libFuzzer's (docs/embedding.md).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from accelaes_export.building.tokenizers import portable_form
from accelaes_export.bundle.reading import Bundle
from tests.campaigns.size import WHOLE
from tests.native.building import SOURCES, build
from tests.policies.small_tokenizers import t5_tokenizer

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.xdist_group("fuzz"),
    pytest.mark.native,
]
SECONDS = 300 if WHOLE else 45  # of each target
MARKED = (Path(__file__).parents[1] / "native" / "marked_words.txt").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized") / "fuzz"
    build(folder, "-DACCELAES_FUZZ=ON", target="fuzz_all")
    return folder


def run(folder: Path, target: str, *inputs: bytes) -> None:
    files = []
    for k, data in enumerate(inputs):
        files.append(folder / f"{target}-{k}")
        files[-1].write_bytes(data)
    command = [folder / f"fuzz_{target}", str(SECONDS), "7", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 20 * SECONDS, "inputs were tried"


def test_manifests(folder: Path, complete_bundle: Bundle) -> None:
    run(folder, "manifest", (complete_bundle.path / "manifest.json").read_bytes())


def test_prompts(folder: Path) -> None:
    run(folder, "prompt", *(b"intricate detail\0" + line for line in MARKED.split(b"\n")))


def test_tokenizers(folder: Path, tmp_path: Path) -> None:
    clip = portable_form(SOURCES.parent / "checkpoints/shapes/tokenizer", "CLIPTokenizer", 32, None)
    t5 = t5_tokenizer(("\u2581red", "\u2581star"))
    t5.save_pretrained(tmp_path)
    unigram = portable_form(tmp_path, type(t5).__name__, 24, 8)
    assert clip is not None and unigram is not None
    run(folder, "tokenizer", *(form.encode() + b"\0" + MARKED[:400] for form in (clip, unigram)))
