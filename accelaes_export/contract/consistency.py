"""What a manifest says twice must agree. One that contradicts itself was edited, and would fail later and less clearly.

Or not at all: with one of two text entries gone the words of a prompt weigh on other positions, and it draws another
picture without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import (
    AFFINITY,
    FOCUS_INDEX,
    FOCUS_PREDICTION,
    HIDDEN_STATES,
    NEW,
    TIMESTEP,
    GraphContract,
    keys_of,
    places,
)
from accelaes_export.errors import InputError, shortened
from accelaes_export.policies.plan import Plan

_SHARE_TOLERANCE = 0.01  # a bucket is rounded to a multiple of 8 tokens where that moves n/N no more


def contradiction(manifest: Manifest) -> str | None:
    """The first statement that disagrees with another, as a clause; None for a manifest that agrees with itself."""
    of_each_size: tuple[Callable[[Manifest, Geometry], Iterator[str]], ...] = (
        _tokens,
        _channels,
        _tensors,
        _ranges,
        _layerwise,
        _text,
        _rows,
        _presets,
        _components,
    )
    of_all: tuple[Callable[[Manifest], Iterator[str]], ...] = (_source, _call, _recipe)
    clauses = (
        *(check(manifest, geometry) for geometry in manifest.geometries for check in of_each_size),
        *(check(manifest) for check in of_all),
    )
    return next(chain.from_iterable(clauses), None)


def _tokens(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    contract, latents = geometry.contract, geometry.latents
    buckets = contract.buckets
    if contract.tokens != latents.tokens or not buckets or buckets[-1] != contract.tokens:
        yield (
            f"N is {latents.tokens} by its latents, {contract.tokens} by its contract, and the "
            f"buckets are {', '.join(map(str, buckets)) or 'none'}"
        )
        return
    if len(manifest.bucket_fractions) != len(buckets):
        yield f"{len(manifest.bucket_fractions)} bucket fractions for {len(buckets)} buckets"
        return
    if list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        yield f"the buckets {', '.join(map(str, buckets))} don't ascend"
    for fraction, n in zip(manifest.bucket_fractions, buckets, strict=True):
        if abs(n - fraction * contract.tokens) > max(1, _SHARE_TOLERANCE * contract.tokens):
            yield f"bucket {fraction:g} of {contract.tokens} tokens has {n}"
    if set(geometry.bucket_flops) != set(buckets):
        yield f"FLOPs are counted for the buckets {', '.join(map(str, geometry.bucket_flops)) or 'none'}"
    if any(not 0 <= layer < manifest.layers for layer in manifest.affinity_layers):
        yield f"affinity comes from the blocks {manifest.affinity_layers} of {manifest.layers}"


def _channels(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    latents, configured = geometry.latents, manifest.transformer_config.get("out_channels")
    if (
        isinstance(configured, int)
        and not latents.packed
        and latents.out_channels + latents.sigma_channels != configured
    ):
        yield (
            f"the transformer has {configured} output channels, and its latents {latents.out_channels} and "
            f"{latents.sigma_channels}"
        )


def _ranges(_: Manifest, geometry: Geometry) -> Iterator[str]:
    ranges = [blocks.label for blocks in geometry.contract.ranges]
    engines = [blocks.label if (blocks := engine.contract.without) else "none" for engine in geometry.without]
    if engines != ranges:
        yield (
            f"it has engines without the blocks {', '.join(engines) or 'none'}, and its "
            f"focus step keeps the changes of {', '.join(ranges) or 'none'}"
        )
    for blocks in geometry.contract.ranges:
        if not 0 <= blocks.first < blocks.last <= blocks.of:
            yield f"blocks {blocks.label} of {blocks.of} are left out"
    folders = list(geometry.folders)
    if len(set(folders)) != len(folders):
        yield "two engines lie in one folder"
    for engine in geometry.beside:
        for name in ("dtype", "batch", "pairs", "tokens", "text_tokens", "conditioning"):
            own, whole = getattr(engine.contract, name), getattr(geometry.contract, name)
            if own != whole:
                yield f"{name} is {whole} of the focus step and {own} of the step in {engine.folder}"


def _text(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    positions = sum(segment.length for segment in manifest.text)
    if positions != geometry.contract.text_tokens:
        yield f"its text entries have {positions} positions, and its contract {geometry.contract.text_tokens}"
    if any(not segment.tokenizers for segment in manifest.text):
        yield "a text entry has no tokenizer"
    if (geometry.contract.text_input is None) != (not manifest.text):
        yield f"it has {len(manifest.text)} text entries, and its text input is {geometry.contract.text_input}"


def _tensors(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    contracts: tuple[GraphContract, ...] = (geometry.contract, *(engine.contract for engine in geometry.beside))
    for contract in contracts:
        inputs, outputs = ({spec.name: spec for spec in specs} for specs in (contract.inputs, contract.outputs))
        if len(inputs) != len(contract.inputs) or len(outputs) != len(contract.outputs):
            yield "a tensor is there twice"
        whole = contract.without is not None or contract.own_parts is not None  # all tokens go through the network
        focus = () if whole else (FOCUS_INDEX,)
        required = (HIDDEN_STATES, TIMESTEP, *focus, *contract.conditioning)
        missing = [name for name in required if name not in inputs]
        missing += [name for name in (FOCUS_PREDICTION,) if name not in outputs]
        if missing:
            yield f"there is no tensor {missing[0]}"
            return
        if inputs[HIDDEN_STATES].shape != ("B", *geometry.latents.shape):
            yield f"its latents are {geometry.latents.shape}, and the engine takes {inputs[HIDDEN_STATES].shape[1:]}"
        computed = contract.tokens if whole else "n"
        if outputs[FOCUS_PREDICTION].shape != ("B", computed, geometry.latents.token_width):
            yield f"a token has {geometry.latents.token_width} numbers, and the engine gives others"
        for entry in contract.cache:
            background, fresh = inputs.get(f"{entry.name}_bg"), outputs.get(entry.name)
            wanted = [("B", entry.heads, letter, entry.head_dim) for letter in ("m", "n")]
            if background is None or fresh is None or [background.shape, fresh.shape] != wanted:
                yield f"the cache's {entry.name} isn't as the engine has it"
        cached = {entry.name for entry in contract.cache}
        unknown = [name for name in inputs if name.endswith("_bg") and name.removesuffix("_bg") not in cached]
        if unknown:
            yield f"the engine takes {unknown[0]}, which is not in the cache"
        for spec in (*contract.inputs, *contract.outputs):
            if spec.optional and spec.kind != "mask":
                yield f"{spec.name} may be left out, and is no mask"
            if spec.dtype not in (contract.dtype, "fp32", "int64"):
                yield f"{spec.name} is {spec.dtype} in an engine of {contract.dtype}"
    if (AFFINITY in geometry.contract.has) != bool(manifest.affinity_layers):
        yield f"affinity comes from the blocks {manifest.affinity_layers}, and the engine has it or not"


def _layerwise(_: Manifest, geometry: Geometry) -> Iterator[str]:
    engine = geometry.layerwise
    others = (geometry.contract, *(one.contract for one in geometry.without))
    if any(contract.own_parts is not None for contract in others):
        yield "a step that isn't the layer-wise one has parts of its own"
    own = None if engine is None else engine.contract.own_parts
    if own != geometry.contract.layerwise or (engine is not None and own is None):
        yield "its focus step and its layer-wise step differ in what the latter is"
    if engine is None or own is None:
        return
    inputs, outputs = ({s.name: s for s in specs} for specs in (engine.contract.inputs, engine.contract.outputs))
    if len(set(own.labels)) != len(own.labels):
        yield "a part of the layer-wise step is there twice"
    for part in own.parts:
        asked = inputs.get(places(part.label)), inputs.get(keys_of(part.label))
        found = [None if spec is None else spec.shape for spec in asked]
        if found != [(f"n.{part.label}",), (f"k.{part.label}",) if part.keys else None]:
            yield f"the layer-wise step's part {part.label} isn't as the engine has it"
    if set(engine.part_flops) != set(own.labels):
        yield "FLOPs are counted for other parts than the layer-wise step's"
    for spec in own.state:
        new = outputs.get(spec.name + NEW)
        if inputs.get(spec.name) != spec or new is None or (new.shape, new.dtype) != (spec.shape, spec.dtype):
            yield f"the layer-wise step keeps {spec.name}, and the engine doesn't"


def _presets(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    names = [preset.name for preset in geometry.presets]
    if len(set(names)) != len(names):
        yield "two presets have one name"
    for preset in geometry.presets:
        if preset.steps not in preset.plans:
            yield f"the preset {preset.name} has {preset.steps} steps and no plan for them"
        for steps, symbols in preset.plans.items():
            try:
                found = len(Plan(symbols, manifest.sparse_fractions, manifest.range_shares))
            except InputError as error:
                yield f"the preset {preset.name} has a plan that is none ({error})"
                break
            if found != steps:
                yield f"the preset {preset.name} has a plan of {found} steps for {steps}"
        needed = {"advance", "extrapolate", "guide"} | ({"advance_focus", "score"} if preset.focus else set())
        if not needed <= preset.programs.keys():
            yield f"the preset {preset.name} lacks the program {min(needed - preset.programs.keys())}"
            continue
        state = {spec.name: spec for spec in preset.state}
        tokens = ("B", geometry.contract.tokens, geometry.latents.token_width)
        for name, program in preset.programs.items():
            for spec in (*program.inputs, *program.outputs):
                own = state.get(spec.name.removesuffix(NEW))
                rows = spec.shape[1:] if spec.shape else ()
                if own is not None and (own.dtype, own.shape[1:]) != (spec.dtype, rows):
                    yield f"the preset {preset.name} keeps {own.name} otherwise than its program {name} has it"
                if spec.name in ("computed", "predicted") and spec.shape != tokens:
                    yield f"the preset {preset.name} has predictions of another size than the engine"


def _components(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    components, vae = manifest.components, geometry.vae
    if components is None:
        if vae is not None:
            yield "it has a VAE's graphs and no components"
        return
    if components.sha256 != components.digest(vae):
        yield "its components aren't what they were when it was built"
        return
    if (components.vae is None) != (vae is None):
        yield "it has a VAE without its graphs, or the other way round"
    if components.pipeline.get("_class_name") not in manifest.call.pipelines:
        yield f"its components are a {components.pipeline.get('_class_name')}'s, and it serves others"
    if vae is not None and vae.latents.inputs[0].shape[1:] != geometry.latents.shape:
        yield f"its latents are {geometry.latents.shape}, and its VAE takes {vae.latents.inputs[0].shape[1:]}"
    if components.conditioning is not None:
        taken = {spec.name: spec for spec in geometry.contract.inputs}
        for spec in components.conditioning.outputs:
            if spec.name not in taken or len(taken[spec.name].shape) != len(spec.shape):
                yield f"its text encoders make {spec.name}, which the engine has not"
    for name, tokenizer in components.tokenizers.items():
        if len({file.rpartition("/")[0] for file in tokenizer.files}) != 1:
            yield f"the files of its {name} lie in several folders"


def _rows(manifest: Manifest, geometry: Geometry) -> Iterator[str]:
    guidance, contract = manifest.call.guidance, geometry.contract
    if contract.pairs != guidance.pairs:
        yield f"guidance is {guidance.layout}, and the engine has {contract.rows} rows for {contract.batch}"


def _source(manifest: Manifest) -> Iterator[str]:
    source = manifest.source
    if (source.kind == "random") != (source.seed is not None):
        yield f"its weights are of the kind {source.kind}, and their seed is {source.seed}"


def _call(manifest: Manifest) -> Iterator[str]:
    call = manifest.call
    if call.signature[:1] != (HIDDEN_STATES,) or len(set(call.signature)) != len(call.signature):
        yield f"the transformer's call begins with {', '.join(call.signature) or 'nothing'}"
    if not call.pipelines:
        yield "it serves no pipeline"


def _recipe(manifest: Manifest) -> Iterator[str]:
    """What the build was asked for, against what came of it."""
    written = manifest.model_dump(mode="json", include={"text", "defaults", "bucket_fractions"})
    defaults, geometry = written["defaults"], manifest.geometry
    said: dict[str, Any] = {
        "name": manifest.model,
        "family": manifest.family,
        "form": manifest.form,
        "dtype": geometry.contract.dtype,
        "batch": geometry.contract.batch,
        "buckets": written["bucket_fractions"][:-1],
        "text": written["text"],
        "spatial_cfg": manifest.spatial_cfg,
        "token_scorer": manifest.token_scorer,
        "vae_scale": geometry.latents.vae_scale,
        "resolution": [geometry.latents.size["height"], geometry.latents.size["width"]],
        "steps": defaults["steps"],
        "guidance": defaults["guidance"],
        "policy": {"name": defaults["policy"], "options": defaults["policy_options"]},
        "plans": defaults["plans"],
    }
    if manifest.recipe.get("anchors") is not None:
        said["anchors"] = list(manifest.anchors)
    for name, value in said.items():
        if name in manifest.recipe and manifest.recipe[name] != value:
            yield f"{name} was asked for as {shortened(manifest.recipe[name])} and is {shortened(value)}"
    if len(defaults["plan"]) != defaults["steps"] and manifest.recipe.get("policy"):
        yield f"its plan has {len(defaults['plan'])} steps and its default is {defaults['steps']}"
