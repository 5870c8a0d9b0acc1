"""The stages of one engine: its weights are known, its graph is exported, it is compiled. Each is kept when it is done.

`work` functions fill a stage's folder; `StageStore.make` puts it in its place when all of it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.backbones.checkpoints import parameter_shapes
from accelaes_export.backends.base import CompiledEngine, CompileRequest
from accelaes_export.building.stages import StageStore, stage_key
from accelaes_export.contract.fingerprint import FINGERPRINT, fingerprint
from accelaes_export.memory import drop_weights, release

if TYPE_CHECKING:
    from accelaes_export.backends.base import FocusProgram
    from accelaes_export.building.job import BuildJob
    from accelaes_export.progress import BuildProgress

_ONNX = "focus_step.onnx"
_ENGINE_RECORD = "engine.json"


def weights_known(job: BuildJob, store: StageStore, progress: BuildProgress) -> Path:
    """The stage that holds the weights' fingerprint. InputError for weights that aren't finite in the build's dtype."""
    inputs, dtype = job.inputs, job.inputs.recipe.dtype
    key = stage_key(weights=inputs.source.weights_sha256, dtype=dtype, fingerprint=1)
    found = store.find("weights", key)
    if found is not None:
        return found

    def work(folder: Path) -> None:
        with progress.stage("check weights", f"{job.graph.weight_bytes / 1e9:.2f} GB in {dtype}"):
            names = parameter_shapes(inputs.backbone, inputs.config)
            own = fingerprint(names, inputs.read_weights(), inputs.read_weights("fp32"), dtype)
            (folder / FINGERPRINT).write_text(own.model_dump_json(), encoding="utf-8")

    return store.make("weights", key, work)


def exported_part(part: BuildJob, store: StageStore, kept: Path | None, progress: BuildProgress) -> Path:
    """The ONNX focus step; load, trace and export unless an earlier build left it as the stage `kept`."""
    if kept is not None:
        progress.reused("load, trace, export", f"{kept.name} from an earlier build")
        return kept / _ONNX
    from accelaes_export.graph.export import save_onnx, trace

    inputs, contract = part.inputs, part.graph.contract

    def work(folder: Path) -> None:
        size = f"{part.graph.weight_bytes / 1e9:.2f} GB in {inputs.recipe.dtype}"
        with progress.stage("load", f"{inputs.source.location}, {size}"):
            read = inputs.read_weights()
            model = inputs.load_hollow(read)
        with progress.stage("trace", f"N = {contract.tokens}, M = {contract.text_tokens}{_named(part)}"):
            program = trace(part.focus_step(model))
        with progress.stage("export", "ONNX opset 23"):
            save_onnx(
                program,
                contract,
                folder,
                lambda name: read(name.removeprefix("model.")),
                external=inputs.recipe.weights == "inputs",
            )
        drop_weights(model)

    folder = store.make("onnx", part.keys.export, work)
    release()  # a compiler wants the memory next
    return folder / _ONNX


def compiled_part(part: BuildJob, store: StageStore, onnx: Path | None, progress: BuildProgress) -> CompiledEngine:
    """The engine; compiled unless an earlier build left it. `onnx` is None for a backend that reads programs."""
    inputs, backend = part.inputs, part.inputs.backend
    kept = store.find("engine", part.keys.engine)
    if kept is not None:
        progress.reused("compile", f"{kept.name} from an earlier build")
    else:

        def work(folder: Path) -> None:
            name = f"{backend.name} for {', '.join(inputs.targets)}{_named(part)}"
            with progress.stage("compile", name) as stage:
                request = CompileRequest(
                    onnx,
                    part.graph.contract,
                    inputs.targets,
                    folder,
                    timing_cache=store.root / f"{backend.name}.timing",
                    weights=inputs.recipe.weights,
                    attention=part.attention,
                    program=_program(part) if onnx is None else None,
                    options=inputs.recipe.compiling,
                )
                engine = backend.compile(request, lambda note, fraction: stage.update(fraction, note))
                record = {
                    "files": engine.files,
                    "versions": dict(engine.versions),
                    "targets": engine.targets,
                    "notes": engine.notes,
                }
                (folder / _ENGINE_RECORD).write_text(json.dumps(record), encoding="utf-8")

        kept = store.make("engine", part.keys.engine, work)
    record = json.loads((kept / _ENGINE_RECORD).read_text(encoding="utf-8"))
    return CompiledEngine(
        files=tuple(record["files"]),
        versions=record["versions"],
        targets=tuple(record["targets"]),
        notes=tuple(record["notes"]),
    )


def _named(part: BuildJob) -> str:
    """Which of a build's engines this is, in words; nothing for the focus step."""
    contract = part.graph.contract
    if contract.own_parts is not None:
        return f", layer-wise, tokens ranked by {contract.own_parts.ranking}"
    return "" if contract.without is None else f", without blocks {contract.without.label}"


def _program(part: BuildJob) -> FocusProgram:
    """The focus step for a backend that traces and compiles it; the model is loaded when it does."""
    from accelaes_export.graph.program import TracedFocusStep

    inputs = part.inputs
    read = inputs.read_weights()
    return TracedFocusStep(lambda filled: part.focus_step(inputs.load() if filled else inputs.load_hollow(read)), read)
