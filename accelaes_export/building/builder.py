"""The build wing's front door: recipe and checkpoint in, bundle out, stage by stage.

    load -> trace -> export -> compile -> verify -> write

A backend that reads programs instead of ONNX traces what it compiles: there is no export, and nothing to keep of it.
Stages are kept by the hash of what they depend on (stages.py); the bundle appears at once when all of it is there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export import recipes
from accelaes_export.backends import backend as backend_named
from accelaes_export.building.components import MadeComponents, component_bytes, made_components
from accelaes_export.building.job import BuildJob, build_job
from accelaes_export.building.manifest import manifest_of
from accelaes_export.building.parts import compiled_part, exported_part, weights_known
from accelaes_export.building.presets import compiled_presets
from accelaes_export.building.resources import Needs, require
from accelaes_export.building.stages import StageStore
from accelaes_export.bundle.opening import open_engines, open_graph, open_programs
from accelaes_export.bundle.reading import Bundle
from accelaes_export.bundle.signing import signing_key
from accelaes_export.bundle.writing import build_lock, check_destination, kept_as, sign_bundle, write_bundle
from accelaes_export.contract.components import component_files
from accelaes_export.contract.fingerprint import FINGERPRINT
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.presets import preset_files
from accelaes_export.contract.tuning import Tuning, not_measured, read_tuning, tuned_plans
from accelaes_export.errors import BuildError, BundleError, InputError, OtherDeviceError
from accelaes_export.options import parse_targets, require_seed
from accelaes_export.progress import BuildProgress, Silent
from accelaes_export.recipes import BuildRecipe

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from typing_extensions import Unpack

    from accelaes_export.backends.base import Session
    from accelaes_export.recipes import Override

# A CPU verifies about 50 GFLOP/s of focus steps; above this, verification is left to `verify`.
_VERIFY_FLOPS = 2e12
_VERIFY_BYTES = 2e9  # of components' weights, likewise
_ON_CPU = (
    "compared on a CPU, which computes inside in float32: where a GPU would overflow can't be seen there; "
    "run accelaes-export verify on the GPU"
)


def build(
    checkpoint: str | Path | None = None,
    *,
    model: str | BuildRecipe,
    backend: str = "onnxruntime",
    targets: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    verify: bool = True,
    tuning: str | Path | None = None,
    tuning_anyway: bool = False,
    sign: str | Path | None = None,
    force: bool = False,
    progress: BuildProgress | None = None,
    **override: Unpack[Override],
) -> Bundle:
    """Build a bundle.

    Args:
        checkpoint: a folder in diffusers format, a hub id or ``shipped:NAME``; the recipe's own if None.
        model: the recipe's name (`accelaes-export models` lists them), or a recipe of your own. All further defaults
            come from it.
        backend: as `accelaes-export doctor` lists them.
        targets: compute capabilities like "sm86,sm120"; the backend's own default if None.
        output: the bundle's folder; ``engines/built/MODEL-BACKEND-DTYPE`` if None.
        random_weights: build the published architecture with random weights from `seed`; needs no checkpoint.
        verify: compare the engine with the model before it is written, where it runs here.
        tuning: a file that `accelaes-export tune` wrote: drift's plans for its budgets, in place of the recipe's.
        tuning_anyway: take it for other weights or pictures than those it was made with; what was measured on those
            is left out.
        sign: a PEM file with the Ed25519 private key to sign the bundle with.
        force: replace another bundle at `output`.
        progress: told of every stage.
        override: fields of the recipe that shall be others, such as ``resolution="1024x1024", dtype="fp16"``: see
            `recipes.Override`; None leaves a field as it is.

    Raises:
        InputError, MissingComponentError: what was asked for can't be; nothing was written.
        BuildError: a stage failed; finished stages are kept, the output is as it was.
    """
    progress = progress or Silent()
    require_seed(seed)
    key = None if sign is None else signing_key(sign)
    variant = override.get("variant")
    if random_weights and (checkpoint is not None or variant is not None):
        beside = f"checkpoint {checkpoint}" if checkpoint is not None else f"variant {variant}"
        raise InputError(f"Random weights were asked for beside {beside}; leave one of them out.")
    tuned = None if tuning is None else read_tuning(Path(tuning))
    recipe = _recipe(model, checkpoint, override)
    if tuned is not None:
        recipe = recipe.override(plans={**recipe.plans, **tuned_plans(tuned, recipe.buckets)})
    job = build_job(
        recipe,
        backend_named(backend),
        None if targets is None else parse_targets(targets),
        seed if random_weights else None,
    )
    foreign = None if tuned is None else _foreign(tuned, Path(str(tuning)), job)
    if foreign is not None:
        if not tuning_anyway:
            raise InputError(f"{foreign}, or say --tuning-anyway.")
        unmeasured = recipe.override(plans=not_measured(recipe.plans))
        job = replace(job, inputs=replace(job.inputs, recipe=unmeasured))
    _say_which_weights(job, progress)
    folder = Path(output) if output else default_output(job)
    standing = _standing(job, folder, force=force, progress=progress)
    if standing is not None:
        if key is not None:
            sign_bundle(standing, key)
        return standing
    return _built(job, folder, verify=verify, force=force, key=key, progress=progress)


def default_output(job: BuildJob) -> Path:
    """Where a bundle lands when nobody says."""
    recipe = job.inputs.recipe
    return Path("engines/built") / f"{recipe.name}-{job.inputs.backend.name}-{recipe.dtype}"


def _recipe(model: str | BuildRecipe, checkpoint: str | Path | None, override: Override) -> BuildRecipe:
    recipe = recipes.load(model) if isinstance(model, str) else model
    if override.get("affinity_every") is not None or checkpoint is not None:
        # Where blocks look is a property of trained weights: the recipe's choice is for its own checkpoint.
        recipe = recipe.model_copy(update={"affinity_blocks": None})
    return recipe.override(checkpoint=None if checkpoint is None else str(checkpoint), **override)


def _foreign(tuning: Tuning, path: Path, job: BuildJob) -> str | None:
    """What is wrong with a tuning of other weights or of pictures of another size, and what to do."""
    source, latents = job.inputs.source, job.graph.latents
    if tuning.weights_sha256 != source.weights_sha256:
        return (
            f"{path} was made on the weights {tuning.weights_sha256[:12]} of {tuning.model}, and those of "
            f"{source.location} are {source.weights_sha256[:12]}: tune this checkpoint"
        )
    if tuning.size != dict(latents.size):
        was, now = (" x ".join(map(str, size.values())) for size in (tuning.size, latents.size))
        return f"{path} was made on pictures of {was}, and this build is of {now}: tune a bundle of this size"
    return None


def _say_which_weights(job: BuildJob, progress: BuildProgress) -> None:
    """Notes on weight files that aren't taken, and on a configuration that diffusers doesn't know."""
    checkpoint = job.inputs.checkpoint
    if checkpoint is None:
        return
    if checkpoint.beside or job.inputs.source.variant:
        others = ", ".join(name or "the plain one" for name in checkpoint.beside)
        left = f"; {others} beside it isn't read (--variant)" if others else ""
        progress.note(f"The weights are {checkpoint.files[0].name} of {checkpoint.folder}{left}.")
    if checkpoint.unknown:
        progress.note(
            f"{checkpoint.folder / 'config.json'} has {', '.join(checkpoint.unknown)}, which this release of "
            "diffusers doesn't know and ignores; where that matters, install a newer one."
        )


def _standing(job: BuildJob, folder: Path, *, force: bool, progress: BuildProgress) -> Bundle | None:
    """The bundle at `folder` where it is this very build and whole; InputError for what mustn't be replaced."""
    standing = check_destination(folder, job.keys.build, force=force)
    if standing is not None and standing.manifest.build_key == job.keys.build and not force:
        try:
            standing.check()
        except BundleError as error:
            progress.note(f"{error} Building it again.")
        else:
            progress.reused("bundle", f"{folder} is already this build and is whole")
            return standing
    aside = kept_as(folder)
    if aside is not None:
        progress.note(f"{folder} is no bundle that can be read; it will be moved to {aside}.")
    return None


def _built(
    job: BuildJob, folder: Path, *, verify: bool, force: bool, key: Ed25519PrivateKey | None, progress: BuildProgress
) -> Bundle:
    """The bundle, stage by stage."""
    store, parts = StageStore(folder), job.parts
    exports = job.inputs.backend.reads == "onnx"
    # Asked once: it hashes what may be gigabytes.
    kept = [store.find("onnx", part.keys.export) if exports else None for part in parts]
    needs = Needs.of_build(
        [part.graph.weight_bytes for part in parts],
        job.inputs.weight_copies,
        exports=[exports and found is None for found in kept],
        components=component_bytes(job),
        component_copies=job.inputs.backend.weight_copies("engine", job.inputs.recipe.compiling, job.inputs.targets)
        if exports
        else 0,
    )
    require(needs, folder, progress)
    with build_lock(folder):
        store.clean()
        weights = weights_known(job, store, progress)
        engines = []
        for part, found in zip(parts, kept, strict=True):
            onnx = exported_part(part, store, found, progress) if exports else None
            engines.append(compiled_part(part, store, onnx, progress))
        stages = [store.root / f"engine-{part.keys.engine}" for part in parts]
        presets, programs = compiled_presets(job, store, progress) if job.presets else ((), None)
        components = made_components(job, store, progress)
        manifest = manifest_of(job, engines, presets, components)
        if verify:
            manifest = _verified(job, manifest, stages, programs, progress, components)
        files = {
            posixpath.join(where, name): stage / name
            for where, stage, engine in zip(manifest.geometry.folders, stages, engines, strict=True)
            for name in engine.files
        }
        files |= {name: programs / posixpath.basename(name) for name in preset_files(presets)} if programs else {}
        if components is not None:
            files |= {
                name: components.file(name) for name in component_files(manifest.components, manifest.geometry.vae)
            }
        files[FINGERPRINT] = weights / FINGERPRINT
        with progress.stage("write", str(folder)):
            return write_bundle(folder, manifest, files, force=force, key=key)


def _verified(
    job: BuildJob,
    manifest: Manifest,
    stages: Sequence[Path],
    programs: Path | None,
    progress: BuildProgress,
    components: MadeComponents | None,
) -> Manifest:
    """The manifest with its parity recorded, where the engines in `stages` run here and are small enough to try.

    Presets, whose files are in `programs`, are run as well where their steps are small enough together, and components
    where they are.

    Raises BuildError where an engine that was built computes something else than the model.
    """
    from accelaes_export.building.verification import compare, machine

    backend, contract, geometry = job.inputs.backend, job.graph.contract, manifest.geometry
    available = backend.availability()
    if not available.can_run:
        progress.note(f"Not verified here: {available.reason}. Run accelaes-export verify where the engine runs.")
        return manifest
    if not backend.for_gpu(job.inputs.targets) and sum(geometry.bucket_flops.values()) > _VERIFY_FLOPS:
        progress.note("Not verified while building, as it would take long on this machine: run accelaes-export verify.")
        return manifest
    with progress.stage("verify", f"{len(contract.buckets)} buckets") as following:
        folders = dict(zip(geometry.folders, stages, strict=True))
        try:
            session = open_engines(manifest.backend, geometry, folders)
        except OtherDeviceError as error:
            progress.note(f"Not verified here: {error}")
            return manifest
        parity = compare(session, manifest, geometry, job.inputs.load(), following.update)
    failed = [result for result in parity if not result.passed]
    if failed:
        raise BuildError(
            f"The engine's bucket n = {failed[0].bucket} differs from the {failed[0].reference} by {failed[0].errors} "
            f"in {contract.dtype}; nothing was written."
        )
    if programs is not None:
        _verify_presets(job, manifest, session, programs, progress)
    if components is not None:
        _verify_components(job, manifest, components, session.device, progress)
    anywhere = backend.reads == "onnx"  # a graph that isn't compiled for one kind of device
    if contract.dtype != "fp32" and anywhere and all(result.device == "cpu" for result in parity):
        record = manifest.backend.model_copy(update={"notes": (*manifest.backend.notes, _ON_CPU)})
        manifest = manifest.model_copy(update={"backend": record})
    compared = geometry.model_copy(update={"parity": parity})
    return manifest.model_copy(update={"geometries": (compared,), "measured_on": machine()})


def _verify_presets(
    job: BuildJob, manifest: Manifest, session: Session, programs: Path, progress: BuildProgress
) -> None:
    """BuildError where a preset does otherwise than its policy does in Python."""
    from accelaes_export.building.preset_verification import compare_preset

    geometry = manifest.geometry
    flops = 2 * sum(preset.steps for preset in geometry.presets) * max(geometry.bucket_flops.values())
    if not job.inputs.backend.for_gpu(job.inputs.targets) and flops > _VERIFY_FLOPS:
        progress.note("Presets weren't verified while building, as it would take long: run accelaes-export verify.")
        return
    with progress.stage("verify presets", f"{len(geometry.presets)} runs") as stage:
        for k, preset in enumerate(geometry.presets):
            opened = open_programs(
                manifest.backend, preset, lambda name: programs / posixpath.basename(name), session.device
            )
            stage.update(k / len(geometry.presets), preset.name)
            result = compare_preset(session, manifest, geometry, preset, opened)
            if not result.passed:
                raise BuildError(
                    f"The preset {preset.name} differs from its policy in Python by {result.max_rel:.2g} of a "
                    f"prediction and in {result.differing} of {result.focus} focus tokens; nothing was written."
                )


def _verify_components(
    job: BuildJob, manifest: Manifest, made: MadeComponents, device: torch.device, progress: BuildProgress
) -> None:
    """BuildError where a component computes something else than the checkpoint's."""
    from accelaes_export.building.component_verification import compare_components

    parts, backend = job.inputs.parts, manifest.backend
    assert parts is not None, "components were made of them"
    size = sum(part.size for part in parts.described)
    if not job.inputs.backend.for_gpu(job.inputs.targets) and size > _VERIFY_BYTES:
        progress.note("Components weren't verified while building, as it would take long: run accelaes-export verify.")
        return
    with progress.stage("verify components", ", ".join(job.inputs.recipe.components)) as stage:
        results = compare_components(
            manifest, lambda graph: open_graph(backend, graph, made.file, device), parts, device, stage.update
        )
    for result in results:
        if not result.passed:
            raise BuildError(
                f"The {result.name} differs from {result.reference} by {result.found}, where {result.allowed} is "
                "allowed; nothing was written."
            )
