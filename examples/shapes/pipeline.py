"""How a pipeline is written to a folder."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from examples.shapes.denoiser import Denoiser, Tokenizers
from examples.shapes.tokenizer import save_tokenizer


def save_pipeline(denoiser: Denoiser, vae: AutoencoderKL, tokenizers: Tokenizers, folder: Path) -> None:
    """Write the pipeline, its large parts in float16, replacing what is in `folder` once the new one is whole."""
    building = folder.with_name(folder.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    pipeline = copy.deepcopy(denoiser).half().assemble(copy.deepcopy(vae).half(), tokenizers)
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.float()  # transformers computes in the type of the file, where diffusers computes in float32
    pipeline.save_pretrained(building)
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, CLIPTokenizer):
            save_tokenizer(tokenizer, building / name)
    _forget_origin(building / "vae" / "config.json")
    for file in building.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    retired = folder.with_name(folder.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if folder.exists():
        folder.rename(retired)
    building.rename(folder)
    shutil.rmtree(retired, ignore_errors=True)


def _forget_origin(config: Path) -> None:
    """Take the folder out of a config from which diffusers had loaded the part; it names a place on this machine."""
    entries = json.loads(config.read_text(encoding="utf-8"))
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
