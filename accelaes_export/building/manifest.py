"""What a bundle says about itself, from the build's job and the engine that was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelaes_export import __version__
from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.backends.base import CompiledEngine
from accelaes_export.building.components import MadeComponents
from accelaes_export.building.job import BuildJob
from accelaes_export.contract.geometry import EngineBeside, Geometry, PartFlops
from accelaes_export.contract.manifest import BackendRecord, Defaults, Manifest, TransformerCall
from accelaes_export.contract.presets import Preset
from accelaes_export.contract.tensors import KeptPart
from accelaes_export.plugins.sparse_query_attention import NAME as PLUGIN
from accelaes_export.plugins.sparse_query_attention import VERSION as PLUGIN_VERSION
from accelaes_export.policies.anchors import ANCHORS

if TYPE_CHECKING:
    from accelaes_export.graph.focus_step import FocusStep


def manifest_of(
    job: BuildJob,
    engines: Sequence[CompiledEngine],
    presets: Sequence[Preset] = (),
    components: MadeComponents | None = None,
) -> Manifest:
    """Everything but parity and the files' hashes, which come when they are there.

    Args:
        engines: of the job's parts, in their order.
        presets: policies as graphs.
        components: what else of the pipeline was asked for.
    """
    inputs, graph = job.inputs, job.graph
    recipe, engine, backbone = inputs.recipe, engines[0], inputs.backbone
    return Manifest(
        created_by=f"accelaes-export {__version__}",
        build_key=job.keys.build,
        model=recipe.name,
        family=recipe.family,
        form=recipe.form,
        source=inputs.source,
        geometries=(_geometry(job, engines, presets, components),),
        text=recipe.text,
        layers=graph.layers,
        affinity_layers=graph.affinity_layers,
        bucket_fractions=(*recipe.buckets, 1.0),
        transformer_config=inputs.config,
        call=TransformerCall(
            pipelines=backbone.pipelines,
            signature=backbone.signature,
            guidance=backbone.guidance,
            built_in=backbone.built_in,
            attributes=backbone.attributes(inputs.config),
        ),
        spatial_cfg=recipe.spatial_cfg,
        token_scorer=recipe.token_scorer,
        anchors=recipe.anchors or ANCHORS,
        components=None if components is None else components.components,
        backend=BackendRecord(
            name=inputs.backend.name,
            versions=dict(engine.versions),
            targets=engine.targets,
            files=engine.files,
            plugin=f"{PLUGIN} {PLUGIN_VERSION}" if job.attention == "plugin" else None,
            notes=engine.notes,
        ),
        recipe=recipe.model_dump(mode="json"),
        defaults=Defaults(
            steps=recipe.steps,
            guidance=recipe.guidance,
            policy=recipe.policy.name,
            policy_options=recipe.policy.options,
            plan=str(job.default_plan),
            plans=recipe.plans,
        ),
        files={},
    )


def _geometry(
    job: BuildJob, engines: Sequence[CompiledEngine], presets: Sequence[Preset], components: MadeComponents | None
) -> Geometry:
    backbone, config, latents = job.inputs.backbone, job.inputs.config, job.graph.latents
    beside = [_beside(part, engine) for part, engine in zip(job.parts[1:], engines[1:], strict=True)]
    return Geometry(
        latents=latents,
        contract=job.graph.contract,
        fixed=backbone.fixed(config, latents),
        bucket_flops=_bucket_flops(job),
        without=tuple(engine for engine in beside if engine.contract.without is not None),
        layerwise=next((engine for engine in beside if engine.contract.own_parts is not None), None),
        presets=tuple(presets),
        vae=None if components is None else components.vae,
    )


def _beside(part: BuildJob, engine: CompiledEngine) -> EngineBeside:
    from accelaes_export.graph.focus_step import count_flops

    contract = part.graph.contract
    step = _to_count(part)
    flops = count_flops(step, contract.tokens)
    return EngineBeside(
        contract=contract,
        folder="layerwise" if contract.without is None else f"without_{contract.without.first}_{contract.without.last}",
        files=engine.files,
        flops=flops,
        part_flops={} if contract.own_parts is None else _part_flops(step, contract.own_parts.parts, flops),
    )


def _part_flops(step: FocusStep, parts: Sequence[KeptPart], whole: int) -> dict[str, PartFlops]:
    """Of a layer-wise step's parts; those of one name are alike, so the first of them is counted."""
    from accelaes_export.graph.focus_step import count_flops

    N = step.contract.tokens
    kinds: dict[str, PartFlops] = {}
    for k, part in enumerate(parts):
        if part.name not in kinds:
            none, half = (
                count_flops(step, N, counts=[count if own == k else N for own in range(len(parts))])
                for count in (0, N // 2)
            )
            token = (whole - half) / (N - N // 2)
            kinds[part.name] = PartFlops(once=max(0.0, whole - none - token * N), token=token)
    return {part.label: kinds[part.name] for part in parts}


def _bucket_flops(job: BuildJob) -> dict[int, int]:
    from accelaes_export.graph.focus_step import count_flops

    step = _to_count(job)
    return {n: count_flops(step, n) for n in job.graph.contract.buckets}


def _to_count(job: BuildJob) -> FocusStep:
    """The job's step on the meta device."""
    inputs = job.inputs
    return job.focus_step(empty_transformer(inputs.backbone, inputs.config, inputs.recipe.dtype))
