"""What a bundle says about itself, from the build's plan and the engine that was made."""

from __future__ import annotations

from collections.abc import Sequence

from accelaes_export import __version__
from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.backends.base import CompiledEngine
from accelaes_export.building.job import BuildPlan
from accelaes_export.contract.manifest import BackendRecord, Defaults, EngineWithout, Manifest, TransformerCall
from accelaes_export.plugins.sparse_query_attention import NAME as PLUGIN
from accelaes_export.plugins.sparse_query_attention import VERSION as PLUGIN_VERSION
from accelaes_export.policies.anchors import ANCHORS


def manifest_of(plan: BuildPlan, engines: Sequence[CompiledEngine]) -> Manifest:
    """Everything but parity and the files' hashes, which come when they are there.

    Args:
        engines: of the plan's parts, in their order.
    """
    recipe, engine = plan.recipe, engines[0]
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
            pipelines=plan.backbone.pipelines,
            signature=plan.backbone.signature,
            guidance=plan.backbone.guidance,
            built_in=plan.backbone.built_in,
            fixed=plan.backbone.fixed(plan.config, plan.latents),
            attributes=plan.backbone.attributes(plan.config),
        ),
        spatial_cfg=recipe.spatial_cfg,
        token_scorer=recipe.token_scorer,
        anchors=recipe.anchors or ANCHORS,
        backend=BackendRecord(
            name=plan.engine.name,
            versions=dict(engine.versions),
            targets=engine.targets,
            files=engine.files,
            plugin=f"{PLUGIN} {PLUGIN_VERSION}" if plan.attention == "plugin" else None,
            notes=engine.notes,
        ),
        recipe=recipe.model_dump(mode="json"),
        defaults=Defaults(
            steps=recipe.steps,
            guidance=recipe.guidance,
            policy=recipe.policy.name,
            policy_options=recipe.policy.options,
            plan=str(plan.default_plan),
            plans=recipe.plans,
        ),
        bucket_flops=_bucket_flops(plan),
        without=tuple(_without(part, made) for part, made in zip(plan.parts[1:], engines[1:], strict=True)),
        files={},
    )


def _without(part: BuildPlan, engine: CompiledEngine) -> EngineWithout:
    blocks = part.contract.without
    assert blocks is not None, "all parts but the first leave a range out"
    return EngineWithout(
        contract=part.contract,
        folder=f"without_{blocks.first}_{blocks.last}",
        files=engine.files,
        flops=_bucket_flops(part)[part.contract.tokens],
    )


def _bucket_flops(plan: BuildPlan) -> dict[int, int]:
    from accelaes_export.graph.focus_step import count_flops

    step = plan.focus_step(empty_transformer(plan.backbone, plan.config, plan.recipe.dtype))
    return {n: count_flops(step, n) for n in plan.contract.buckets}
