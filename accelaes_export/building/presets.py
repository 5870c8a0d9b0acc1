"""Presets: policies that a bundle has as graphs, in its engine's own format."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.building.job import BuildJob, PresetChoice
from accelaes_export.building.stages import StageStore, stage_key
from accelaes_export.contract.patches import picture_of
from accelaes_export.contract.presets import FocusChoice, GraphRecord, Preset
from accelaes_export.contract.tensors import BACKGROUND_PREDICTION, NEW
from accelaes_export.errors import InputError
from accelaes_export.policies import options_of
from accelaes_export.progress import BuildProgress

if TYPE_CHECKING:
    from accelaes_export.graph.policy_export import PolicyGraph
    from accelaes_export.policies import Policy

FOLDER = "presets"
"""In the bundle."""
LONGEST = 100
"""Steps of the longest plan a preset has."""
_RECORD = "presets.json"


def compiled_presets(job: BuildJob, store: StageStore, progress: BuildProgress) -> tuple[tuple[Preset, ...], Path]:
    """The job's presets and the folder their files are in; made unless an earlier build left them."""
    key = _key(job)
    kept = store.find("presets", key)
    if kept is not None:
        progress.reused("presets", f"{kept.name} from an earlier build")
    else:
        kept = store.make("presets", key, lambda folder: _make(job, folder, progress))
    presets = json.loads((kept / _RECORD).read_text(encoding="utf-8"))
    return tuple(Preset.model_validate(preset) for preset in presets), kept


def _key(job: BuildJob) -> str:
    import onnxscript
    import torch

    import accelaes_export.policies as policies

    code = hashlib.sha256()
    for path in sorted(Path(policies.__path__[0]).glob("*.py")):
        code.update(path.read_bytes())
    inputs = job.inputs
    return stage_key(
        presets=[(choice.name, choice.policy.name, options_of(choice.policy)) for choice in job.presets],
        code=code.hexdigest(),
        latents=job.graph.latents.model_dump(),
        guidance=inputs.backbone.guidance.model_dump(),
        contract=job.graph.contract.model_dump(mode="json"),
        steps=inputs.recipe.steps,
        backend=inputs.backend.name,
        targets=inputs.targets,
        versions=dict(inputs.backend.availability().versions) | {"torch": torch.__version__},
        onnxscript=onnxscript.__version__,
    )


def _make(job: BuildJob, folder: Path, progress: BuildProgress) -> None:
    from accelaes_export.graph.policy_export import save_programs

    names = ", ".join(choice.name for choice in job.presets)
    with progress.stage("presets", names) as stage:
        graphs = {choice.name: _graphs(job, choice.policy) for choice in job.presets}
        # Policies share programs: guidance is the same in nearly all of them.
        distinct = {_stem(graph): graph for own in graphs.values() for graph in own}
        exports = job.inputs.backend.reads == "onnx"
        onnx = folder / "onnx"
        if exports:
            onnx.mkdir()
            save_programs(distinct, onnx)
        files = {}
        for k, (stem, graph) in enumerate(distinct.items()):
            stage.update(k / len(distinct), graph.name)
            request = GraphRequest(
                stem,
                graph.inputs,
                graph.outputs,
                {"B": graph.sizes.B, "b": graph.sizes.b},
                job.inputs.targets,
                folder,
                onnx=onnx / f"{stem}.onnx" if exports else None,
                program=None if exports else graph.trace(),
            )
            files[stem] = job.inputs.backend.compile_graph(request)
        if exports:
            shutil.rmtree(onnx)
        records = [_preset(job, choice, graphs[choice.name], files) for choice in job.presets]
        (folder / _RECORD).write_text(json.dumps([r.model_dump(mode="json") for r in records]), encoding="utf-8")


def _graphs(job: BuildJob, policy: Policy) -> tuple[PolicyGraph, ...]:
    from accelaes_export.graph.policy_export import Sizes, policy_graphs
    from accelaes_export.policies.programs import programs_of

    latents, contract, guidance = job.graph.latents, job.graph.contract, job.inputs.backbone.guidance
    picture = picture_of(latents, guidance, component=BACKGROUND_PREDICTION in contract.has)
    guided = guidance.layout != "none"
    sizes = Sizes((1 + guided) * contract.batch, contract.batch, latents.tokens, latents.token_width)
    return policy_graphs(programs_of(policy, picture), sizes)


def _stem(graph: PolicyGraph) -> str:
    return f"{graph.name}-{graph.fingerprint[:12]}"


def _preset(job: BuildJob, choice: PresetChoice, graphs: Sequence[PolicyGraph], files: dict[str, Any]) -> Preset:
    policy, selector = choice.policy, choice.policy.selector()
    state = {spec.name: spec for graph in graphs for spec in graph.outputs if spec.name.endswith(NEW)}
    return Preset(
        name=choice.name,
        policy=policy.name,
        options=json.loads(json.dumps(options_of(policy))),
        steps=choice.steps,
        plans=_plans(job, policy),
        clock=policy.extrapolation.clock,
        theta=policy.extrapolation.theta,
        words=policy.word_scoring,
        focus=None
        if selector is None
        else FocusChoice(moving=selector.moving, mask_step=selector.mask_step, fraction=selector.fraction),
        state=tuple(spec.model_copy(update={"name": spec.name.removesuffix(NEW)}) for spec in state.values()),
        programs={
            graph.name: GraphRecord(
                files=tuple(f"{FOLDER}/{name}" for name in files[_stem(graph)]),
                inputs=graph.inputs,
                outputs=graph.outputs,
            )
            for graph in graphs
        },
    )


def _plans(job: BuildJob, policy: Policy) -> dict[int, str]:
    """T to the plan's symbols, for every T that the policy can plan."""
    found = {}
    for steps in range(2, LONGEST + 1):
        try:
            found[steps] = str(policy.plan(steps, job.inputs.recipe.buckets, job.graph.contract.shares))
        except InputError:
            continue
    return found
