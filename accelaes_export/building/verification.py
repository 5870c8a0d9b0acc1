"""Does a bundle's engine compute what the model computes? Every bucket against diffusers, or the eager focus step."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones import Backbone, backbone_of
from accelaes_export.backbones.checkpoints import load_transformer, random_transformer, resolve
from accelaes_export.backbones.other_kinds import refuse_config
from accelaes_export.backbones.pipeline_parts import PipelineParts
from accelaes_export.backends import backend
from accelaes_export.building.differences import NORM_TOLERANCES, TOLERANCES, difference
from accelaes_export.building.fair_inputs import LOUDNESS, accounts, nudged, of_loudness
from accelaes_export.building.preset_verification import PresetParity, compare_preset
from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.geometry import Geometry, Parity
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.patches import patchify
from accelaes_export.contract.tensors import AFFINITY, OBSERVED_INDEX, GraphContract
from accelaes_export.errors import InputError
from accelaes_export.progress import BuildProgress, Silent

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.base import Session
    from accelaes_export.building.component_verification import ComponentParity
    from accelaes_export.graph.focus_step import FocusStep


@dataclass(frozen=True)
class VerifyReport:
    """What was compared. `skipped` says why an engine could not be run here ('' where it was)."""

    parity: tuple[Parity, ...]
    skipped: str
    presets: tuple[PresetParity, ...] = ()
    components: tuple[ComponentParity, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing that could be compared differs by more than its tolerance."""
        passed = [p.passed for p in self.parity], [p.passed for p in self.presets], [p.passed for p in self.components]
        return all(map(all, passed))


def verify(bundle: Bundle, checkpoint: str | Path | None = None, progress: BuildProgress | None = None) -> VerifyReport:
    """Check a bundle's hashes, every bucket of its engine against the diffusers model, its presets and components.

    Args:
        bundle: the opened bundle.
        checkpoint: where the weights are now, if not where the manifest says.
        progress: told of the stages.

    Raises:
        BundleError: a file differs from the manifest.
        InputError: the checkpoint has other weights than the bundle was built from.
    """
    progress = progress or Silent()
    manifest = bundle.manifest
    with progress.stage("hashes", f"{len(manifest.files)} files"):
        bundle.check()
    available = backend(manifest.backend.name).availability()
    if not available.can_run:
        return VerifyReport((), f"{available.reason}; {available.remedy}")
    with progress.stage("load", manifest.source.location):
        model = source_model(manifest, checkpoint)
    geometry = manifest.geometry
    session = bundle.session()
    with progress.stage("verify", f"{len(geometry.contract.buckets)} buckets") as stage:
        parity = compare(session, manifest, geometry, model, stage.update)
    del model
    presets = []
    for preset in geometry.presets:
        with progress.stage("verify preset", f"{preset.name}, {preset.steps} steps") as stage:
            programs = bundle.programs(preset)
            presets.append(compare_preset(session, manifest, geometry, preset, programs, stage.update))
    return VerifyReport(parity, "", tuple(presets), _components(bundle, checkpoint, progress))


def _components(bundle: Bundle, checkpoint: str | Path | None, progress: BuildProgress) -> tuple[ComponentParity, ...]:
    """What a bundle has of its pipeline, against the checkpoint's; nothing where it has nothing."""
    from accelaes_export.building.component_verification import (
        compare_components,
        compare_pictures,
        require_same,
        wanted_of,
    )

    manifest = bundle.manifest
    if manifest.components is None:
        return ()
    source = manifest.source
    with progress.stage("verify components", ", ".join(wanted_of(manifest.components))) as stage:
        found = resolve(
            checkpoint or source.location,
            backbone_of(manifest.family),
            revision=source.revision,
            variant=source.variant,
            whole=True,
        )
        parts = PipelineParts.of(found, wanted_of(manifest.components))
        require_same(manifest.components, parts)
        tensors = compare_components(manifest, bundle.graph, parts, bundle.session().device, stage.update)
    with progress.stage("verify a picture", "by the bundle's components and by the checkpoint's"):
        return (*tensors, *compare_pictures(bundle, None if checkpoint is None else str(checkpoint)))


def source_model(manifest: Manifest, checkpoint: str | Path | None = None) -> torch.nn.Module:
    """The diffusers transformer a bundle was built from, in the bundle's dtype; InputError if its weights differ."""
    backbone, dtype = backbone_of(manifest.family), manifest.geometry.contract.dtype
    refuse_config(Path("The bundle's manifest"), manifest.transformer_config)
    if manifest.source.kind == "random":
        assert manifest.source.seed is not None
        return random_transformer(backbone, manifest.transformer_config, dtype, manifest.source.seed)
    source = manifest.source
    found = resolve(checkpoint or source.location, backbone, revision=source.revision, variant=source.variant)
    if found.source.weights_sha256 != manifest.source.weights_sha256:
        raise InputError(
            f"{found.folder} has other weights than this bundle was built from (hash "
            f"{found.source.weights_sha256[:12]}…, not {manifest.source.weights_sha256[:12]}…); "
            "name the right checkpoint, or build again."
        )
    return load_transformer(found, backbone, dtype)


def model_arguments(
    manifest: Manifest, model: torch.nn.Module
) -> Callable[[Mapping[str, torch.Tensor]], Mapping[str, Any]]:
    """How the diffusers transformer is called: from the contract's inputs by name to its keyword arguments."""
    backbone = backbone_of(manifest.family)

    def arguments(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        call = _RecordedCall(model.config)
        backbone.reference(call, inputs, manifest.geometry.latents)
        return call.arguments

    return arguments


class _RecordedCall:
    """In a model's place: keeps what it is called with."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.arguments: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> tuple[None]:
        self.arguments = arguments
        return (None,)


def compare(
    session: Session,
    manifest: Manifest,
    geometry: Geometry,
    model: torch.nn.Module,
    update: Callable[[float, str], None] | None = None,
) -> tuple[Parity, ...]:
    """Every bucket of a size's session on the same random inputs as the model in fp32 (weights in the bundle's dtype):
    standard-normal, with quieter text where the model itself can't answer such (`fair_inputs`).

    The model computes where the engine does: a GPU is as able to compute the reference, at any size.

    Dense: prediction against the unmodified diffusers model. Sparse: every output against the eager focus step. A step
    that leaves blocks out, given what they changed on these very inputs: against the unmodified model as well. The
    layer-wise step: see `_layered`.
    """
    import torch

    from accelaes_export.graph.focus_step import FocusStep, example_inputs

    backbone: Backbone = backbone_of(manifest.family)
    contract, device = geometry.contract, session.device
    reference = in_fp32(model, backbone, device)
    step = FocusStep(reference, backbone, contract, geometry.latents, manifest.affinity_layers).eval()
    results = []

    def answer(given: Mapping[str, torch.Tensor], n: int) -> Mapping[str, torch.Tensor]:
        exact = _in_full(given)
        with torch.no_grad():
            if n < contract.tokens:
                step.install()
                return step.run(exact)
            step.restore()
            call = {name: exact[name] for name in ("hidden_states", "timestep", *contract.conditioning)}
            sample = backbone.reference(reference, call, geometry.latents)
            return {"focus_prediction": patchify(sample, geometry.latents)}

    def moved(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], n: int) -> float:
        return difference(answer(nudged(given, contract), n), expected).max_rel

    for k, n in enumerate(contract.buckets):
        kind = "diffusers" if n == contract.tokens else "eager focus step"
        drawn = example_inputs(contract, n, seed=n, device=device)
        for loudness in LOUDNESS:
            inputs = of_loudness(drawn, contract, loudness)
            expected = answer(inputs, n)
            one = _parity(_as_in_a_run(session, inputs, expected, n), expected, n, kind, contract.dtype)
            if one.passed or not accounts(moved(inputs, expected, n), one.max_rel):
                break
        results.append(one)
        if update is not None:
            update((k + 1) / len(contract.buckets), f"n = {n}")
    # The last bucket is the dense one, so `inputs` and `expected` are of all tokens.
    names = [spec.name for blocks in contract.ranges for spec in blocks.changes]
    known = {**inputs, **_outputs(session, contract, inputs, names, contract.tokens)} if names else inputs
    for blocks, engine in zip(contract.ranges, geometry.without, strict=True):
        step_inputs = {spec.name: known[spec.name] for spec in engine.contract.inputs}
        found = _outputs(session, engine.contract, step_inputs, expected, contract.tokens)
        kind = f"diffusers, blocks {blocks.label} left out"
        results.append(_parity(found, expected, contract.tokens, kind, contract.dtype))
    if geometry.layerwise is not None:
        own = geometry.layerwise.contract
        step.restore()
        layered = FocusStep(reference, backbone, own, geometry.latents, ()).eval()
        results += _layered(session, layered, inputs, expected)
        layered.restore()
    return tuple(results)


def _layered(
    session: Session, step: FocusStep, dense: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> Iterator[Parity]:
    """The layer-wise step where all parts compute all tokens: as the model; and where every other part computes none,
    as in eager mode. Between these a token more or less may rank differently by the last bit of its score."""
    import torch

    from accelaes_export.graph.focus_step import example_inputs

    contract, N = step.contract, step.contract.tokens
    assert contract.own_parts is not None
    for least, kind in ((N, "diffusers, layer-wise"), (0, "eager layer-wise step")):
        counts = [N if k % 2 else least for k in range(len(contract.own_parts.parts))]
        inputs = example_inputs(contract, N, seed=least, device=session.device, counts=counts)
        inputs |= {name: tensor for name, tensor in dense.items() if name in inputs}
        wanted = expected
        if least == 0:
            with torch.no_grad():
                wanted = step.run(_in_full(inputs))
        yield _parity(_outputs(session, contract, inputs, wanted, N), wanted, N, kind, contract.dtype)


def _in_full(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs as the reference takes them: what is real in fp32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _as_in_a_run(
    session: Session, inputs: Mapping[str, torch.Tensor], names: Iterable[str], n: int
) -> dict[str, torch.Tensor]:
    """The outputs called `names`: the affinity of a call that observes, everything else of one that doesn't."""
    affinity = [name for name in names if name == AFFINITY]
    found = _outputs(session, session.contract, inputs, affinity, n) if affinity else {}
    blind = {name: tensor[:, :0] if name == OBSERVED_INDEX else tensor for name, tensor in inputs.items()}
    others = [name for name in names if name != AFFINITY]
    return found | _outputs(session, session.contract, blind, others, n)


def in_fp32(model: torch.nn.Module, backbone: Backbone, device: torch.device) -> torch.nn.Module:
    """The model on the device, computing in fp32.

    Where a GPU has no room for all of its weights in fp32, each matrix of the blocks is so only while it is used.
    """
    import torch

    if _has_room(model, device):
        return model.to(device).float()
    blocks = [block for name in backbone.block_lists for block in getattr(model, name)]
    matrices = [part for block in blocks for part in block.modules() if isinstance(part, torch.nn.Linear)]
    kept = {id(weight) for matrix in matrices for weight in matrix.parameters()}
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.to(device)
        if id(weight) not in kept and weight.is_floating_point():
            weight.data = weight.data.float()
    for matrix in matrices:
        dtype = matrix.weight.dtype  # to fp32 and back changes no bit
        matrix.register_forward_pre_hook(lambda part, _: part.float() and None)
        matrix.register_forward_hook(lambda part, _, __, dtype=dtype: part.to(dtype) and None)
    return model


def _has_room(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether the weights fit in fp32, with something left to compute in."""
    import torch

    size = 4 * sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))
    return device.type != "cuda" or 1.2 * size < torch.cuda.mem_get_info(device)[0]


def _outputs(
    session: Session, contract: GraphContract, inputs: Mapping[str, torch.Tensor], names: Iterable[str], n: int
) -> dict[str, torch.Tensor]:
    """The outputs called `names` of one call at the largest B, on the session's device; NaN where it wrote nothing."""
    import torch

    specs, sizes = {spec.name: spec for spec in contract.outputs}, contract.sizes(n)
    outputs = {
        name: torch.full(
            specs[name].sized(sizes), math.nan, dtype=torch_dtype(specs[name].dtype), device=session.device
        )
        for name in names
    }
    session.run(inputs, outputs)
    return outputs


def _parity(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], n: int, reference: str, dtype: str
) -> Parity:
    apart = difference(found, expected)
    return Parity(
        bucket=n,
        reference=reference,
        max_abs=apart.max_abs,
        max_rel=apart.max_rel,
        tolerance=TOLERANCES[dtype],
        passed=apart.within(dtype),
        norm_rel=apart.norm_rel,
        norm_tolerance=NORM_TOLERANCES[dtype],
        device=str(found[next(iter(expected))].device),
    )


def machine() -> str:
    """The machine figures come from, in words."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} torch threads{gpu}"
