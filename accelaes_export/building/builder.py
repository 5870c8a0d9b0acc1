"""The build wing's front door: recipe and checkpoint in, bundle out, stage by stage.

    load -> trace -> export -> compile -> verify -> write

A backend that reads programs instead of ONNX traces what it compiles: there is no export, and nothing to keep of it.
Stages are kept by the hash of what they depend on (stages.py); the bundle appears at once when all of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export import recipes
from accelaes_export.backbones.checkpoints import parameter_shapes
from accelaes_export.backends import backend as backend_named
from accelaes_export.backends.base import CompiledEngine, CompileRequest
from accelaes_export.building.job import BuildPlan, plan_build
from accelaes_export.building.manifest import manifest_of
from accelaes_export.building.resources import Needs, require
from accelaes_export.building.stages import StageStore, stage_key
from accelaes_export.bundle.reading import Bundle, open_engines
from accelaes_export.bundle.signing import signing_key
from accelaes_export.bundle.writing import build_lock, check_destination, kept_as, sign_bundle, write_bundle
from accelaes_export.contract.fingerprint import FINGERPRINT, fingerprint
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import BuildError, BundleError, InputError, OtherDeviceError
from accelaes_export.memory import drop_weights, release
from accelaes_export.options import parse_buckets, parse_ranges, parse_targets, require_seed
from accelaes_export.progress import BuildProgress, Silent
from accelaes_export.recipes import BuildRecipe

if TYPE_CHECKING:
    from accelaes_export.backends.base import FocusProgram

_ONNX = "focus_step.onnx"
_ENGINE_RECORD = "engine.json"
# A CPU verifies about 50 GFLOP/s of focus steps; above this, verification is left to `verify`.
_VERIFY_FLOPS = 2e12
_ON_CPU = (
    "compared on a CPU, which computes inside in float32: where a GPU would overflow can't be seen there; "
    "run accelaes-export verify on the GPU"
)


def build(
    checkpoint: str | Path | None = None,
    *,
    model: str | BuildRecipe,
    backend: str = "onnxruntime",
    output: str | Path | None = None,
    targets: str | Sequence[str] | None = None,
    resolution: str | tuple[int, int] | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    buckets: str | Sequence[float] | None = None,
    block_ranges: str | Sequence[tuple[int, int]] | None = None,
    affinity_layers: int | None = None,
    form: str | None = None,
    weights: str | None = None,
    attention: str | None = None,
    compiling: str | Mapping[str, bool] | None = None,
    frames: int | None = None,
    text_multiple: int | None = None,
    variant: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    verify: bool = True,
    sign: str | Path | None = None,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> Bundle:
    """Build a bundle.

    Args:
        checkpoint: a folder in diffusers format, a hub id or ``shipped:NAME``; the recipe's own if None.
        model: the recipe's name (`accelaes-export models` lists them), or a recipe of your own. All further defaults
            come from it.
        backend: onnxruntime, aoti, tensorrt-rtx or tensorrt.
        output: the bundle's folder; ``engines/built/MODEL-BACKEND-DTYPE`` if None.
        targets: compute capabilities like "sm86,sm120"; the backend's own default if None.
        resolution: height and width in pixels, or "1024x1024".
        batch: images per engine call.
        dtype: fp32, fp16 or bf16.
        buckets: fractions n/N of focus tokens; dense is always built.
        block_ranges: (first, last) of blocks that steps may leave out, or "0:12,12:24"; each is another engine.
        affinity_layers: every how manieth block's text attention makes the mask; 1 is all of them.
        form: "token" (only focus tokens go through the network) or "component" (the paper's Eq. 8-10).
        weights: "engine", or "inputs": beside a TensorRT engine, which then needs no memory for them to build.
        attention: "plugin" (TensorRT, and aoti on GPUs, take our kernel), "native", or "auto": whichever was measured
            faster.
        compiling: how aoti generates kernels: "autotune,per-bucket", or a mapping like the recipe's.
        frames: of a video model, in latent frames.
        text_multiple: pad masked texts to a multiple of so many tokens.
        variant: of the checkpoint's weight files, such as fp16; the plain ones if None, or the only variant there is.
        random_weights: build the published architecture with random weights from `seed`; needs no checkpoint.
        verify: compare the engine with the model before it is written, where it runs here.
        sign: a PEM file with the Ed25519 private key to sign the bundle with.
        force: replace another bundle at `output`.
        progress: told of every stage.

    Raises:
        InputError, MissingComponentError: what was asked for can't be; nothing was written.
        BuildError: a stage failed; finished stages are kept, the output is as it was.
    """
    progress = progress or Silent()
    require_seed(seed)
    key = None if sign is None else signing_key(sign)
    if random_weights and (checkpoint is not None or variant is not None):
        raise InputError(
            f"Random weights were asked for beside {f'checkpoint {checkpoint}' if checkpoint else f'variant {variant}'}"
            "; leave one of them out."
        )
    recipe = recipes.load(model) if isinstance(model, str) else model
    if affinity_layers is not None or checkpoint is not None:
        # Where blocks look is a property of trained weights: the recipe's choice is for its own checkpoint.
        recipe = recipe.model_copy(update={"affinity_blocks": None})
    plan = plan_build(
        recipe.override(
            checkpoint=None if checkpoint is None else str(checkpoint),
            resolution=resolution,
            batch=batch,
            dtype=dtype,
            buckets=None if buckets is None else parse_buckets(buckets),
            block_ranges=None if block_ranges is None else parse_ranges(block_ranges),
            affinity_every=affinity_layers,
            form=form,
            weights=weights,
            attention=attention,
            compiling=compiling,
            frames=frames,
            text_multiple=text_multiple,
            variant=variant,
        ),
        backend_named(backend),
        None if targets is None else parse_targets(targets),
        seed if random_weights else None,
    )
    if plan.checkpoint is not None and (plan.checkpoint.beside or plan.source.variant):
        others = ", ".join(name or "the plain one" for name in plan.checkpoint.beside)
        left = f"; {others} beside it isn't read (--variant)" if others else ""
        progress.note(f"The weights are {plan.checkpoint.files[0].name} of {plan.checkpoint.folder}{left}.")
    if plan.checkpoint is not None and plan.checkpoint.unknown:
        progress.note(
            f"{plan.checkpoint.folder / 'config.json'} has {', '.join(plan.checkpoint.unknown)}, which this release of "
            "diffusers doesn't know and ignores; where that matters, install a newer one."
        )
    folder = Path(output) if output else default_output(recipe.name, backend, plan.recipe.dtype)
    standing = check_destination(folder, plan.build_key, force=force)
    if standing is not None and standing.manifest.build_key == plan.build_key and not force:
        try:
            standing.check()
        except BundleError as error:
            progress.note(f"{error} Building it again.")
        else:
            progress.reused("bundle", f"{folder} is already this build and is whole")
            if key is not None:
                sign_bundle(standing, key)
            return standing
    aside = kept_as(folder)
    if aside is not None:
        progress.note(f"{folder} is no bundle that can be read; it will be moved to {aside}.")
    store, parts = StageStore(folder), plan.parts
    exports = plan.engine.reads == "onnx"
    # Asked once: it hashes what may be gigabytes.
    exported = [store.find("onnx", part.export_key) if exports else None for part in parts]
    needs = Needs.of_build(
        [part.weight_bytes for part in parts],
        plan.weight_copies,
        exports=[exports and found is None for found in exported],
    )
    require(needs, folder, progress)
    with build_lock(folder):
        store.clean()
        known = _weights_known(plan, store, progress)
        engines = []
        for part, found in zip(parts, exported, strict=True):
            onnx = _exported(part, store, found, progress) if exports else None
            engines.append(_compiled(part, store, onnx, progress))
        stages = [store.root / f"engine-{part.engine_key}" for part in parts]
        manifest = manifest_of(plan, engines)
        if verify:
            manifest = _verified(plan, manifest, stages, progress)
        folders = ["", *(f"{record.folder}/" for record in manifest.without)]
        files = {
            f"{where}{name}": stage / name
            for where, stage, engine in zip(folders, stages, engines, strict=True)
            for name in engine.files
        }
        files[FINGERPRINT] = known / FINGERPRINT
        with progress.stage("write", str(folder)):
            return write_bundle(folder, manifest, files, force=force, key=key)


def _weights_known(plan: BuildPlan, store: StageStore, progress: BuildProgress) -> Path:
    """The stage that holds the weights' fingerprint. InputError for weights that aren't finite in the build's dtype."""
    key = stage_key(weights=plan.source.weights_sha256, dtype=plan.recipe.dtype, fingerprint=1)
    found = store.find("weights", key)
    if found is not None:
        return found

    def work(folder: Path) -> None:
        with progress.stage("check weights", f"{plan.weight_bytes / 1e9:.2f} GB in {plan.recipe.dtype}"):
            names = parameter_shapes(plan.backbone, plan.config)
            made = fingerprint(names, plan.weights(), plan.weights("fp32"), plan.recipe.dtype)
            (folder / FINGERPRINT).write_text(made.model_dump_json(), encoding="utf-8")

    return store.make("weights", key, work)


def _exported(plan: BuildPlan, store: StageStore, found: Path | None, progress: BuildProgress) -> Path:
    """The ONNX focus step; load, trace and export unless an earlier build left it as the stage `found`."""
    if found is not None:
        progress.reused("load, trace, export", f"{found.name} from an earlier build")
        return found / _ONNX
    from accelaes_export.graph.export import save_onnx, trace

    def work(folder: Path) -> None:
        with progress.stage("load", f"{plan.source.location}, {plan.weight_bytes / 1e9:.2f} GB in {plan.recipe.dtype}"):
            read = plan.weights()
            model = plan.load_hollow(read)
        with progress.stage("trace", f"N = {plan.contract.tokens}, M = {plan.contract.text_tokens}{_part(plan)}"):
            program = trace(plan.focus_step(model))
        with progress.stage("export", "ONNX opset 23"):
            save_onnx(
                program,
                plan.contract,
                folder,
                lambda name: read(name.removeprefix("model.")),
                external=plan.recipe.weights == "inputs",
            )
        drop_weights(model)

    folder = store.make("onnx", plan.export_key, work)
    release()  # a compiler wants the memory next
    return folder / _ONNX


def _compiled(plan: BuildPlan, store: StageStore, onnx: Path | None, progress: BuildProgress) -> CompiledEngine:
    """The engine; compiled unless an earlier build left it. `onnx` is None for a backend that reads programs."""
    name = f"{plan.engine.name} for {', '.join(plan.targets)}{_part(plan)}"
    found = store.find("engine", plan.engine_key)
    if found is not None:
        progress.reused("compile", f"{found.name} from an earlier build")
    else:

        def work(folder: Path) -> None:
            with progress.stage("compile", name) as stage:
                request = CompileRequest(
                    onnx,
                    plan.contract,
                    plan.targets,
                    folder,
                    timing_cache=store.root / f"{plan.engine.name}.timing",
                    weights=plan.recipe.weights,
                    attention=plan.attention,
                    program=_program(plan) if onnx is None else None,
                    options=plan.options,
                )
                engine = plan.engine.compile(request, lambda note, fraction: stage.update(fraction, note))
                record = {
                    "files": engine.files,
                    "versions": dict(engine.versions),
                    "targets": engine.targets,
                    "notes": engine.notes,
                }
                (folder / _ENGINE_RECORD).write_text(json.dumps(record), encoding="utf-8")

        found = store.make("engine", plan.engine_key, work)
    record = json.loads((found / _ENGINE_RECORD).read_text(encoding="utf-8"))
    return CompiledEngine(
        files=tuple(record["files"]),
        versions=record["versions"],
        targets=tuple(record["targets"]),
        notes=tuple(record["notes"]),
    )


def _part(plan: BuildPlan) -> str:
    """Which of a build's engines this is, in words; nothing for the focus step."""
    blocks = plan.contract.without
    return "" if blocks is None else f", without blocks {blocks.label}"


def _program(plan: BuildPlan) -> FocusProgram:
    """The focus step for a backend that traces and compiles it; the model is loaded when it does."""
    from accelaes_export.graph.program import TracedFocusStep

    read = plan.weights()
    return TracedFocusStep(lambda filled: plan.focus_step(plan.load() if filled else plan.load_hollow(read)), read)


def _verified(plan: BuildPlan, manifest: Manifest, stages: Sequence[Path], progress: BuildProgress) -> Manifest:
    """The manifest with its parity recorded, where the engines in `stages` run here and are small enough to try.

    Raises BuildError where an engine that was built computes something else than the model.
    """
    from accelaes_export.building.verification import compare, machine

    available = plan.engine.availability()
    if not available.can_run:
        progress.note(f"Not verified here: {available.reason}. Run accelaes-export verify where the engine runs.")
        return manifest
    gpu = plan.engine.for_gpu(plan.targets)
    if not gpu and sum(manifest.bucket_flops.values()) > _VERIFY_FLOPS:
        progress.note("Not verified while building, as it would take long on this machine: run accelaes-export verify.")
        return manifest
    with progress.stage("verify", f"{len(plan.contract.buckets)} buckets") as following:
        folders = dict(zip(("", *(record.folder for record in manifest.without)), stages, strict=True))
        try:
            session = open_engines(manifest, folders)
        except OtherDeviceError as error:
            progress.note(f"Not verified here: {error}")
            return manifest
        parity = compare(session, manifest, plan.load(), following.update)
    failed = [result for result in parity if not result.passed]
    if failed:
        raise BuildError(
            f"The engine's bucket n = {failed[0].bucket} differs from the {failed[0].reference} by {failed[0].errors} "
            f"in {plan.contract.dtype}; nothing was written."
        )
    anywhere = plan.engine.reads == "onnx"  # a graph that isn't compiled for one kind of device
    if plan.contract.dtype != "fp32" and anywhere and all(result.device == "cpu" for result in parity):
        record = manifest.backend.model_copy(update={"notes": (*manifest.backend.notes, _ON_CPU)})
        manifest = manifest.model_copy(update={"backend": record})
    return manifest.model_copy(update={"parity": parity, "measured_on": machine()})


def default_output(model: str, backend: str, dtype: str) -> Path:
    """Where a bundle lands when nobody says."""
    return Path("engines/built") / f"{model}-{backend}-{dtype}"
