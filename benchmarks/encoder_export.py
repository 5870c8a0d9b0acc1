"""What exporting a large text encoder takes of memory: T5 at its published XL size, with random weights.

    python -m benchmarks.encoder_export --dtype fp32

Makes a checkpoint of it in a temporary folder (2.4 GB in bf16), exports its encoder as ONNX there, and prints seconds,
the size of what was written and the process's peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from accelaes_export.backbones.pipeline_parts import Part
from accelaes_export.graph.components import encoder_graph

PUBLISHED = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}  # google/t5-v1_1-xl
IDS = 256


def save_checkpoint(folder: Path) -> None:
    """Random weights of the published shape, in bf16."""
    config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **PUBLISHED)
    with init_empty_weights(include_buffers=False):
        model = T5EncoderModel(config)
    numbers = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(p.shape, generator=numbers).mul(p.shape[-1] ** -0.5).bfloat16()
        for name, p in model.named_parameters()
        if name != "encoder.embed_tokens.weight"  # the shared one
    }
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def export(folder: Path, dtype: str) -> None:
    """Export it, and print what that took."""
    config = json.loads((folder / "config.json").read_text())
    part = Part("text_encoder", "T5EncoderModel", folder, config, (folder / "model.safetensors",))
    begun = time.perf_counter()
    read = part.read_weights(dtype)
    graph = encoder_graph(part.name, part.kind, part.hollow(read, dtype), read, dtype, length=IDS, rows=8)
    graph.save_onnx(folder)
    seconds = time.perf_counter() - begun
    written = sum(path.stat().st_size for path in folder.glob("text_encoder.onnx*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{part.numbers / 1e9:.2f} billion weights in {dtype}: {written / 1e9:.2f} GB in {seconds:.0f} s")
    print(f"peak of the process: {peak / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    dtype = parser.parse_args().dtype
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "text_encoder"
        for work, more in ((save_checkpoint, ()), (export, (dtype,))):  # each its own process, with a peak of its own
            process = multiprocessing.get_context("spawn").Process(target=work, args=(folder, *more))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
