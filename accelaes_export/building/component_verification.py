"""Do a bundle's components compute what the checkpoint's do? Tensors of each, then a whole picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from accelaes_export.backbones.pipeline_parts import Part, PipelineParts
from accelaes_export.building.differences import NORM_TOLERANCES, TOLERANCES, Difference, difference
from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.components import (
    ATTENTION_MASK,
    COMPONENTS,
    IMAGE,
    INPUT_IDS,
    LATENTS,
    MOMENTS,
    SAMPLE,
    AutoencoderGraphs,
    ComponentName,
    Components,
    TextEncoder,
    Z,
)
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.presets import GraphRecord
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense
from accelaes_export.runtime.arguments import Arguments
from accelaes_export.runtime.components import dtype_around
from accelaes_export.runtime.generate import call_arguments, generate, load_pipeline
from accelaes_export.runtime.pipeline import accelerate, restore
from accelaes_export.runtime.prompts import as_tokenised

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.graphs import OpenedGraph

PROMPT = "an intricate red star on the left, plain background"
CLASS = "1"
"""What a class-conditional model is asked for instead."""
STEPS = 4
# A picture's mean difference in levels of 255: rounding alone in fp32; halves as their roundings are seen.
LEVELS = {"fp32": 0.1, "fp16": 2.0, "bf16": 6.0}


@dataclass(frozen=True)
class ComponentParity:
    """One comparison of a component with its reference; `allowed` says how far it may be, in words."""

    name: str
    reference: str
    found: str
    allowed: str
    passed: bool


Opened = Callable[[GraphRecord], "OpenedGraph"]
"""Opens a graph of the components', or gives one that is open."""


def wanted_of(components: Components) -> tuple[ComponentName, ...]:
    """What a build was asked for, by what it made."""
    there = {"text": components.encoders, "vae": components.vae, "tokenizers": components.tokenizers}
    return tuple(name for name in COMPONENTS if there[name])


def require_same(components: Components, parts: PipelineParts) -> None:
    """InputError where the checkpoint's components have other weights than the bundle's were made of."""
    found = {part.name: part.weights_sha256 for part in parts.described}
    own = {name: encoder.weights_sha256 for name, encoder in components.encoders.items()}
    own |= {} if components.vae is None else {"vae": components.vae.weights_sha256}
    for name, weights in own.items():
        if found.get(name) != weights:
            raise InputError(
                f"The checkpoint's {name} has other weights than this bundle's was made of (hash "
                f"{str(found.get(name))[:12]}…, not {weights[:12]}…); name the right checkpoint, or build again."
            )


def compare_components(
    manifest: Manifest,
    opened: Opened,
    parts: PipelineParts,
    device: torch.device,
    update: Callable[[float, str], None] | None = None,
) -> tuple[ComponentParity, ...]:
    """Every model of a bundle's components against the libraries' own, in fp32 with the weights' own rounding.

    Args:
        device: the engine's, where the models compute too.
    """
    components, vae = manifest.components, manifest.geometry.vae
    assert components is not None, "asked for bundles that have them"
    found = []
    for k, (name, encoder) in enumerate(components.encoders.items()):
        if update is not None:
            update(k / (1 + len(components.encoders)), name)
        found.append(_encoder(name, encoder, opened(encoder.graph), parts.encoders[name], device))
    if components.vae is not None and vae is not None and parts.vae is not None:
        model = parts.vae.load(components.vae.dtype).to(device).float()
        found += _vae(manifest.geometry, vae, opened, components.vae.dtype, model, device)
    return tuple(found)


def compare_pictures(bundle: Bundle, checkpoint: str | None) -> tuple[ComponentParity, ...]:
    """What the bundle's components make of a prompt, against the checkpoint's: for the engine, then as a picture.

    Both run on the bundle's engine, all tokens of a few steps.
    """
    import numpy as np

    components = bundle.manifest.components
    assert components is not None, "asked for bundles that have them"
    theirs = load_pipeline(bundle, checkpoint or bundle.manifest.source.location)
    found = []
    if components.conditioning is not None:
        found.append(_conditioning(bundle, components, theirs))
    classes = getattr(theirs, "labels", None) or {CLASS: CLASS}
    prompt = PROMPT if bundle.manifest.text else next(iter(classes))
    images = [
        generate(bundle, prompt, policy=Dense(), steps=STEPS, seed=1, pipe=pipe).image
        for pipe in (theirs, load_pipeline(bundle))
    ]
    wanted, own = (np.asarray(image.convert("RGB")).astype(int) for image in images)
    levels = abs(own - wanted)
    dtype = dtype_around(bundle)
    found.append(
        ComponentParity(
            "a picture",
            f"the checkpoint's components, {STEPS} steps",
            f"{levels.mean():.2g} levels of 255 on average, {levels.max()} at most",
            f"{LEVELS[dtype]:g} on average",
            bool(levels.mean() <= LEVELS[dtype]),
        )
    )
    return tuple(found)


def _parity(name: str, reference: str, apart: Difference, dtype: str) -> ComponentParity:
    return ComponentParity(
        name,
        reference,
        f"{apart.max_rel:.1e} of the range, {apart.norm_rel:.1e} of the norm",
        f"{TOLERANCES[dtype]:g}, {NORM_TOLERANCES[dtype]:g}",
        apart.within(dtype),
    )


def _encoder(name: str, record: TextEncoder, graph: OpenedGraph, part: Part, device: torch.device) -> ComponentParity:
    import torch

    from accelaes_export.graph.components import encoder_output

    numbers = torch.Generator().manual_seed(0)
    model: Any = part.load(record.dtype).to(device).float()
    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (2, record.length), generator=numbers)
    mask = torch.ones_like(ids)
    mask[1, record.length // 2 :] = 0  # a padded text
    text = {INPUT_IDS: ids.to(device), ATTENTION_MASK: mask.to(device)}
    with torch.no_grad():
        expected = model(**text, output_hidden_states=True)
    wanted = {spec.name: encoder_output(expected, spec.name) for spec in record.graph.outputs}
    return _parity(name, part.kind, difference(graph(text), wanted), record.dtype)


def _vae(
    geometry: Geometry, graphs: AutoencoderGraphs, opened: Opened, dtype: str, model: Any, device: torch.device
) -> list[ComponentParity]:
    import torch

    numbers = torch.Generator().manual_seed(0)
    sizes = {"b": graphs.rows}

    def random(record: GraphRecord) -> torch.Tensor:
        return torch.randn(record.inputs[0].sized(sizes), generator=numbers).to(device)

    latents, sample = random(graphs.latents), random(graphs.encoder).clamp(-1, 1)
    z = opened(graphs.latents)({LATENTS: latents})[Z]
    made = opened(graphs.decoder)({Z: z})
    with torch.no_grad():
        expected = model.decode(z, return_dict=False)[0]
        moments = model.encode(sample).latent_dist.parameters
    shown = ((expected * 0.5 + 0.5).clamp(0, 1) * 255).movedim(1, -1).reshape(made[IMAGE].shape)
    apart = (made[IMAGE].float() - shown).abs()
    levels = apart.mean().item()
    return [
        _parity("vae decoder", type(model).__name__, difference(made, {SAMPLE: expected}), dtype),
        ComponentParity(
            "vae decoder, as an image",
            type(model).__name__,
            f"{levels:.2g} levels of 255 on average, {apart.max().item():.2g} at most",
            f"{0.5 + LEVELS[dtype]:g} on average",  # rounding to whole levels is up to half of one
            levels <= 0.5 + LEVELS[dtype]
            and tuple(made[IMAGE].shape[-3:-1]) == tuple(geometry.latents.size.values())[:2],
        ),
        _parity(
            "vae encoder",
            type(model).__name__,
            difference(opened(graphs.encoder)({SAMPLE: sample}), {MOMENTS: moments}),
            dtype,
        ),
    ]


class _Reached(Exception):
    """What a pipeline gave its transformer at the first step."""

    def __init__(self, conditioning: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.conditioning = conditioning


def _conditioning(bundle: Bundle, components: Components, theirs: Any) -> ComponentParity:
    """Ids through the encoders and the conditioning graph, against what the pipeline's own code gives the engine."""
    record = components.conditioning
    assert record is not None
    wanted = _given_to_transformer(bundle, theirs)
    (cleaned,) = as_tokenised(theirs, [PROMPT], clean_caption=True)
    given = {}
    for name, encoder in components.encoders.items():
        templates = [run.template for run in bundle.manifest.text if encoder.tokenizer in run.tokenizers]
        prompt = templates[0].format(cleaned) if templates else cleaned
        room = (
            {"padding": "max_length"}
            if encoder.padded_to is None
            else {"padding": True, "pad_to_multiple_of": encoder.padded_to}
        )
        tokens = getattr(theirs, encoder.tokenizer)(
            [prompt], max_length=encoder.length, truncation=True, return_tensors="pt", **room
        )
        mask = tokens[ATTENTION_MASK]
        given[f"{encoder.tokenizer}.{ATTENTION_MASK}"] = mask
        if not encoder.masked:
            mask = mask.new_ones(mask.shape)
        made = bundle.graph(encoder.graph)({INPUT_IDS: tokens[INPUT_IDS], ATTENTION_MASK: mask})
        given |= {f"{name}.{output}": tensor for output, tensor in made.items()}
    found = bundle.graph(record)(given)
    expected = {name: wanted[name].to(found[name].device) for name in found}
    reference = f"{type(theirs).__name__}'s own"
    dtype = bundle.manifest.geometry.contract.dtype
    return _parity("conditioning", reference, difference(found, expected), dtype)


def _given_to_transformer(bundle: Bundle, pipe: Any) -> Mapping[str, torch.Tensor]:
    """What the pipeline's own code makes of the prompt for its transformer, by the engine's names."""
    manifest = bundle.manifest
    accelerate(pipe, bundle, Dense())
    read = Arguments(manifest.call, manifest.geometry).read

    def reached(hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> NoReturn:
        raise _Reached(read(hidden_states, args, kwargs).conditioning)

    pipe.transformer.forward = reached
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe(**call_arguments(pipe, manifest, PROMPT, steps=STEPS, guidance=1.0, seed=0))  # without a second half
    except _Reached as there:
        return there.conditioning
    finally:
        restore(pipe)
    raise AssertionError("a pipeline calls its transformer")
