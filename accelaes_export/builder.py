"""The build wing's front door: recipe and checkpoint in, bundle out, stage by stage.

    load -> trace -> export -> compile -> verify -> write

Stages are kept by the hash of what they depend on (stages.py); the bundle appears at once when all of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export import __version__, recipes
from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.backends import backend as backend_named
from accelaes_export.backends.base import CompiledEngine, CompileRequest
from accelaes_export.build_plan import BuildPlan, plan_build
from accelaes_export.bundle import Bundle
from accelaes_export.bundle_writing import build_lock, check_destination, write_bundle
from accelaes_export.errors import BuildError, BundleError
from accelaes_export.manifest import BackendRecord, Defaults, Manifest, TransformerCall
from accelaes_export.memory import drop_weights, release
from accelaes_export.options import parse_buckets, parse_targets
from accelaes_export.policies import named
from accelaes_export.policies.anchors import ANCHORS
from accelaes_export.progress import BuildProgress, Silent
from accelaes_export.resources import Needs, require
from accelaes_export.stages import StageStore

if TYPE_CHECKING:
    import torch

    from accelaes_export.graph.focus_step import FocusStep

_ONNX = "focus_step.onnx"
_ENGINE_RECORD = "engine.json"
# A CPU verifies about 50 GFLOP/s of focus steps; above this, verification is left to `verify`.
_VERIFY_FLOPS = 2e12


def build(
    checkpoint: str | Path | None = None,
    *,
    model: str,
    backend: str = "onnxruntime",
    output: str | Path | None = None,
    targets: str | Sequence[str] | None = None,
    resolution: str | tuple[int, int] | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    buckets: str | Sequence[float] | None = None,
    affinity_layers: int | None = None,
    form: str | None = None,
    weights: str | None = None,
    frames: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> Bundle:
    """Build a bundle.

    Args:
        checkpoint: a folder in diffusers format, a hub id or ``shipped:NAME``; the recipe's own if None.
        model: the recipe's name (`accelaes-export models` lists them). All further defaults come from it.
        backend: onnxruntime, tensorrt-rtx or tensorrt.
        output: the bundle's folder; ``engines/built/MODEL-BACKEND-DTYPE`` if None.
        targets: compute capabilities like "sm86,sm120"; the backend's own default if None.
        resolution: height and width in pixels, or "1024x1024".
        batch: images per engine call.
        dtype: fp32, fp16 or bf16.
        buckets: fractions n/N of focus tokens; dense is always built.
        affinity_layers: every how manieth block's text attention makes the mask; 1 is all of them.
        form: "token" (only focus tokens go through the network) or "component" (the paper's Eq. 8-10).
        weights: "engine", or "inputs": beside a TensorRT engine, which then needs no memory for them to build.
        frames: of a video model, in latent frames.
        random_weights: build the published architecture with random weights from `seed`; needs no checkpoint.
        force: replace another bundle at `output`.
        progress: told of every stage.

    Raises:
        InputError, MissingComponentError: what was asked for can't be; nothing was written.
        BuildError: a stage failed; finished stages are kept, the output is as it was.
    """
    progress = progress or Silent()
    recipe = recipes.load(model)
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
            affinity_every=affinity_layers,
            form=form,
            weights=weights,
            frames=frames,
        ),
        backend_named(backend),
        None if targets is None else parse_targets(targets),
        seed if random_weights else None,
    )
    folder = Path(output) if output else default_output(model, backend, plan.recipe.dtype)
    standing = check_destination(folder, plan.build_key, force=force)
    if standing is not None and standing.manifest.build_key == plan.build_key and not force:
        try:
            standing.check()
        except BundleError as error:
            progress.note(f"{error} Building it again.")
        else:
            progress.reused("bundle", f"{folder} is already this build and is whole")
            return standing
    store = StageStore(folder)
    exported = store.find("onnx", plan.export_key)  # asked once: it hashes what may be gigabytes
    require(
        Needs.of_build(plan.weight_bytes, plan.engine.name, plan.recipe.weights, exported=exported is not None),
        folder,
        progress,
    )
    with build_lock(folder):
        store.clean()
        onnx = _exported(plan, store, exported, progress)
        engine = _compiled(plan, store, onnx, progress)
        stage = store.root / f"engine-{plan.engine_key}"
        manifest = _verified(plan, _manifest(plan, engine), stage, progress)
        with progress.stage("write", str(folder)):
            return write_bundle(folder, manifest, {name: stage / name for name in engine.files}, force=force)


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
        with progress.stage("trace", f"N = {plan.contract.tokens}, M = {plan.contract.text_tokens}"):
            program = trace(_focus_step(plan, model))
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


def _compiled(plan: BuildPlan, store: StageStore, onnx: Path, progress: BuildProgress) -> CompiledEngine:
    """The engine; compiled unless an earlier build left it."""
    name = f"{plan.engine.name} for {', '.join(plan.targets)}"
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


def _manifest(plan: BuildPlan, engine: CompiledEngine) -> Manifest:
    recipe = plan.recipe
    policy = named(recipe.policy.name, **recipe.policy.options)
    return Manifest(
        created_by=f"accelaes-export {__version__}",
        build_key=plan.build_key,
        model=recipe.name,
        family=recipe.family,
        form=recipe.form,
        source=plan.source,
        latents=plan.latents,
        text=recipe.text,
        layers=plan.layers,
        affinity_layers=plan.affinity_layers,
        bucket_fractions=(*recipe.buckets, 1.0),
        contract=plan.contract,
        transformer_config=plan.config,
        call=TransformerCall(
            pipelines=plan.adapter.pipelines,
            signature=plan.adapter.signature,
            guidance=plan.adapter.guidance,
            built_in=plan.adapter.built_in,
            fixed=plan.adapter.fixed(plan.config, plan.latents),
            attributes=plan.adapter.attributes(plan.config),
        ),
        spatial_cfg=recipe.spatial_cfg,
        token_scorer=recipe.token_scorer,
        anchors=recipe.anchors or ANCHORS,
        backend=BackendRecord(
            name=plan.engine.name,
            versions=dict(engine.versions),
            targets=engine.targets,
            files=engine.files,
            notes=engine.notes,
        ),
        recipe=recipe.model_dump(mode="json"),
        defaults=Defaults(
            steps=recipe.steps,
            guidance=recipe.guidance,
            policy=recipe.policy.name,
            policy_options=recipe.policy.options,
            plan=str(policy.plan(recipe.steps, recipe.buckets)),
        ),
        bucket_flops=_bucket_flops(plan),
        files={},
    )


def _bucket_flops(plan: BuildPlan) -> dict[int, int]:
    from accelaes_export.graph.focus_step import count_flops

    step = _focus_step(plan, empty_transformer(plan.adapter, plan.config, plan.recipe.dtype))
    return {n: count_flops(step, n) for n in plan.contract.buckets}


def _focus_step(plan: BuildPlan, model: torch.nn.Module) -> FocusStep:
    from accelaes_export.graph.focus_step import FocusStep

    step = FocusStep(model, plan.adapter, plan.contract, plan.latents, plan.affinity_layers)
    return step.eval()


def _verified(plan: BuildPlan, manifest: Manifest, stage: Path, progress: BuildProgress) -> Manifest:
    """The manifest with its parity recorded, where the engine runs here and is small enough to try.

    Raises BuildError where an engine that was built computes something else than the model.
    """
    from accelaes_export.verification import compare, machine

    available = plan.engine.availability()
    if not available.can_run:
        progress.note(f"Not verified here: {available.reason}. Run accelaes-export verify where the engine runs.")
        return manifest
    if sum(manifest.bucket_flops.values()) > _VERIFY_FLOPS:
        progress.note("Not verified while building, as it would take long on this machine: run accelaes-export verify.")
        return manifest
    with progress.stage("verify", f"{len(plan.contract.buckets)} buckets") as following:
        session = plan.engine.open(stage, plan.contract, manifest.backend.files)
        parity = compare(session, manifest, plan.load(), following.update)
    failed = [result for result in parity if not result.passed]
    if failed:
        raise BuildError(
            f"The engine's bucket n = {failed[0].bucket} differs from the {failed[0].reference} by "
            f"{failed[0].max_rel:.2g} of its range, and {failed[0].tolerance:g} is allowed in {plan.contract.dtype}; "
            "nothing was written."
        )
    return manifest.model_copy(update={"parity": parity, "measured_on": machine()})


def default_output(model: str, backend: str, dtype: str) -> Path:
    """Where a bundle lands when nobody says."""
    return Path("engines/built") / f"{model}-{backend}-{dtype}"
