"""A small bundle whose engine is a few random bytes: enough for everything but running it."""

from __future__ import annotations

from pathlib import Path

from accelaes_export.bundle.reading import Bundle
from accelaes_export.bundle.writing import write_bundle
from accelaes_export.contract.geometry import Geometry, Latents, Parity
from accelaes_export.contract.manifest import (
    BackendRecord,
    Defaults,
    Guidance,
    Manifest,
    Source,
    TextSegment,
    TransformerCall,
)
from accelaes_export.contract.tensors import CacheEntry, GraphContract, TensorSpec

ENGINE = bytes(range(256)) * 3


def fake_contract(layers: int = 2) -> GraphContract:
    """N = 16, buckets 4 and 8, two heads of 4, M = 6."""
    cache = tuple(
        CacheEntry(name=f"cache.{layer}.{part}", heads=2, head_dim=4) for layer in range(layers) for part in "kv"
    )
    return GraphContract(
        dtype="fp32",
        batch=1,
        tokens=16,
        buckets=(4, 8, 16),
        text_tokens=6,
        dynamic_text=True,
        conditioning=("encoder_hidden_states", "pooled_projections"),
        inputs=(
            TensorSpec(name="hidden_states", dtype="fp32", shape=("B", 4, 8, 8)),
            TensorSpec(name="timestep", dtype="fp32", shape=("B",)),
            TensorSpec(name="encoder_hidden_states", dtype="fp32", shape=("B", "M", 12)),
            TensorSpec(name="pooled_projections", dtype="fp32", shape=("B", 12)),
            TensorSpec(name="focus_index", dtype="int64", shape=("B", "n")),
            TensorSpec(name="token_weights", dtype="fp32", shape=("B", "M")),
            *(TensorSpec(name=f"{c.name}_bg", dtype="fp32", shape=("B", 2, "m", 4)) for c in cache),
        ),
        outputs=(
            TensorSpec(name="focus_prediction", dtype="fp32", shape=("B", "n", 16)),
            TensorSpec(name="affinity", dtype="fp32", shape=("B", "n")),
            *(TensorSpec(name=c.name, dtype="fp32", shape=("B", 2, "n", 4)) for c in cache),
        ),
        cache=cache,
    )


def fake_geometry(**changes: object) -> Geometry:
    """Pictures of 16 by 16 pixels, dense and two buckets, compared with the model."""
    parity = Parity(bucket=16, reference="diffusers", max_abs=1e-6, max_rel=2e-6, tolerance=1e-4, passed=True)
    geometry = Geometry(
        latents=Latents(channels=4, out_channels=4, height=8, width=8, patch=2, vae_scale=2),
        contract=fake_contract(),
        bucket_flops={4: 300, 8: 500, 16: 1000},
        parity=(parity,),
    )
    return geometry.model_copy(update=changes)


def fake_manifest(**changes: object) -> Manifest:
    """The manifest of a dense-plus-two-buckets bundle for ONNX Runtime, its files not yet recorded."""
    manifest = Manifest(
        created_by="accelaes-export 0.1.0",
        build_key="k1",
        model="shapes",
        family="sd3",
        form="token",
        source=Source(kind="random", location="random", weights_sha256="0" * 64, seed=0),
        geometries=(fake_geometry(),),
        text=(TextSegment(tokenizers=("tokenizer",), length=6),),
        layers=2,
        affinity_layers=(0, 1),
        bucket_fractions=(0.25, 0.5, 1.0),
        transformer_config={"patch_size": 2},
        call=TransformerCall(
            pipelines=("StableDiffusion3Pipeline",),
            signature=("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
            guidance=Guidance(layout="uncond_cond"),
        ),
        spatial_cfg=False,
        token_scorer="lexical",
        anchors=("intricate",),
        backend=BackendRecord(
            name="onnxruntime", versions={"onnxruntime": "1.31.1"}, targets=("cpu",), files=("engine.onnx",)
        ),
        recipe={},
        defaults=Defaults(steps=28, guidance=4.5, policy="accelaes", plan="DDDDDD.b.D.b.D.b.D.b.D.b.D.D"),
        files={},
        measured_on="a test",
    )
    return manifest.model_copy(update=changes)


def write_fake_bundle(folder: Path, *, engine: bytes = ENGINE, force: bool = False, **changes: object) -> Bundle:
    """Write a fake bundle to `folder` from sources in a hidden folder beside it."""
    sources = folder.parent / f"sources-{folder.name}"
    sources.mkdir(exist_ok=True)
    (sources / "engine").write_bytes(engine)
    (sources / "graph").write_bytes(b"graph")
    files = {"engine.onnx": sources / "engine", "onnx/graph.onnx": sources / "graph"}
    bundle = write_bundle(folder, fake_manifest(**changes), files, force=force)
    for path in files.values():  # the bundle's hard links stay
        path.unlink()
    sources.rmdir()
    return bundle
