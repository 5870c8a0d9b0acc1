"""Focus steps exported as a build exports them, in half precision and small, for TensorRT-RTX."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config, empty_transformer, random_transformer
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.tensors import graph_contract
from tests.families import FAMILIES


def exported(folder: Path, family: str, resolution: tuple[int, int], **changes: Any) -> tuple[GraphContract, Path]:
    """A random fp16 model of `family` with three buckets and the text window fixed: its contract and its ONNX file."""
    backbone = backbone_of(family)
    config = complete_config(backbone, dict(FAMILIES[family].config) | changes)
    latents = backbone.latents(config, resolution, 8)
    contract = graph_contract(
        backbone,
        empty_transformer(backbone, config),
        latents,
        form="token",
        dtype="fp16",
        batch=1,
        fractions=(0.25, 0.5),
        text_tokens=16,
        dynamic_text=False,
    )
    step = FocusStep(random_transformer(backbone, config, "fp16", 0), backbone, contract, latents, [0]).eval()
    return contract, save_onnx(trace(step), contract, folder)


_RECORD = re.compile(
    rb"\x02\0\0\0.{8}"  # two fields
    rb"\x06\0\0\0scale\0\x01\0\0\0(.{4})(.{4})\x05\0\0\0tile\0\x05\0\0\0(.{4})(.{4})",  # name, type, length, data
    re.DOTALL,
)


def serialized_layers(engine: bytes) -> list[tuple[int, float, int, int]]:
    """The plugin layers in an engine, as TensorRT wrote their fields: elements and value of `scale`, then of `tile`.

    Every profile has its own copy of a layer.
    """
    return [
        (*struct.unpack("<i", a), *struct.unpack("<f", b), *struct.unpack("<i", c), *struct.unpack("<i", d))
        for a, b, c, d in _RECORD.findall(engine)
    ]
