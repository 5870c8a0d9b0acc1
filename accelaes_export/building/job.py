"""What a build is going to do: recipe, checkpoint, geometry and contract brought together and checked, stages named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from accelaes_export import __version__
from accelaes_export.backbones import Backbone, backbone_of
from accelaes_export.backbones.base import AttentionSite
from accelaes_export.backbones.checkpoints import (
    Checkpoint,
    complete_config,
    empty_transformer,
    load_transformer,
    parameter_bytes,
    parameter_shapes,
    random_source,
    random_transformer,
    resolve,
)
from accelaes_export.backbones.weights import Read, hollow_transformer, random_weights, stored_weights
from accelaes_export.backends.base import Backend, CompileOptions
from accelaes_export.building.attention import Attention, choose_attention
from accelaes_export.building.stages import stage_key
from accelaes_export.contract.manifest import Latents, Source
from accelaes_export.contract.tensors import BlockRange, GraphContract
from accelaes_export.errors import InputError
from accelaes_export.graph.ranges import contract_without
from accelaes_export.graph.tensors import affinity_layers, few_text_lengths, graph_contract, layers
from accelaes_export.policies import Plan, for_model
from accelaes_export.recipes import BuildRecipe

if TYPE_CHECKING:
    import torch

    from accelaes_export.graph.focus_step import FocusStep

_GRAPH_VERSION = 3  # raise whenever the exported graph changes for the same model


@dataclass(frozen=True)
class BuildPlan:
    """Everything a build decides before it starts working. Its keys name the stages (stages.py).

    A build makes one engine of the focus step, and one more for every range of blocks that steps may leave out:
    `parts` are all of them, each a plan with the contract and keys of its own graph.
    """

    recipe: BuildRecipe
    backbone: Backbone
    engine: Backend
    targets: tuple[str, ...]
    source: Source
    checkpoint: Checkpoint | None  # None: random weights
    config: dict[str, Any]
    latents: Latents
    contract: GraphContract
    layers: int
    affinity_layers: tuple[int, ...]
    attention: Attention
    default_plan: Plan
    weight_bytes: int
    export_key: str
    engine_key: str
    build_key: str

    @property
    def parts(self) -> tuple[BuildPlan, ...]:
        """This plan's focus step, then the step without each of its ranges."""
        return (self, *(self._without(blocks) for blocks in self.contract.ranges))

    def _without(self, blocks: BlockRange) -> BuildPlan:
        contract = contract_without(self.contract, blocks)
        export_key = stage_key(export=self.export_key, without=(blocks.first, blocks.last))
        return replace(
            self,
            contract=contract,
            weight_bytes=int(blocks.share * self.weight_bytes),  # nearly: what stands around the blocks is left out
            export_key=export_key,
            engine_key=stage_key(engine=self.engine_key, export=export_key, contract=contract.model_dump(mode="json")),
        )

    @property
    def options(self) -> CompileOptions:
        """How kernels are made."""
        return CompileOptions(**self.recipe.compiling.model_dump())

    @property
    def weight_copies(self) -> float:
        """How many times the compiler holds the weights."""
        return self.engine.weight_copies(self.recipe.weights, self.options, self.targets)

    def weights(self, dtype: str | None = None) -> Read:
        """The weights, one tensor at a time, in `dtype` or the build's own."""
        dtype = dtype or self.recipe.dtype
        if self.checkpoint is not None:
            return stored_weights(self.checkpoint.files, dtype)
        assert self.source.seed is not None
        return random_weights(parameter_shapes(self.backbone, self.config), dtype, self.source.seed)

    def focus_step(self, model: torch.nn.Module) -> FocusStep:
        """The step of `model`, which may be hollow or on the meta device."""
        from accelaes_export.graph.focus_step import FocusStep

        return FocusStep(model, self.backbone, self.contract, self.latents, self.affinity_layers).eval()

    def load_hollow(self, read: Read) -> torch.nn.Module:
        """The transformer to be traced: its large matrices are left out."""
        return hollow_transformer(self.backbone, self.config, read, self.recipe.dtype)

    def load(self) -> torch.nn.Module:
        """The transformer, from its checkpoint or its seed."""
        dtype = self.recipe.dtype
        if self.checkpoint is None:
            assert self.source.seed is not None
            return random_transformer(self.backbone, self.config, dtype, self.source.seed)
        return load_transformer(self.checkpoint, self.backbone, dtype)


def plan_build(recipe: BuildRecipe, engine: Backend, targets: tuple[str, ...] | None, seed: int | None) -> BuildPlan:
    """Check everything that can be checked before the weights are read, and name the stages.

    Args:
        targets: the backend's default if None.
        seed: of random weights; None for the recipe's checkpoint.

    Raises:
        InputError, MissingComponentError: what was asked for can't be.
    """
    targets = engine.default_targets if targets is None else targets
    engine.check(recipe.dtype, targets)
    if recipe.weights == "inputs" and not engine.name.startswith("tensorrt"):
        raise InputError(
            f"Weights as inputs are for TensorRT, whose builder copies them; {engine.name} doesn't: "
            "leave --weights out."
        )
    backbone = backbone_of(recipe.family)
    checkpoint = None
    if seed is None:
        checkpoint = resolve(recipe.checkpoint, backbone, variant=recipe.variant)
        source, config = checkpoint.source, dict(checkpoint.config)
    else:
        config = complete_config(backbone, recipe.architecture())
        source = random_source(backbone, config, seed)
    latents = backbone.latents(config, recipe.resolution, recipe.vae_scale, recipe.frames)
    shapes = empty_transformer(backbone, config)
    contract = graph_contract(
        backbone,
        shapes,
        latents,
        form=recipe.form,
        dtype=recipe.dtype,
        batch=recipe.batch,
        fractions=recipe.buckets,
        text_tokens=recipe.text_tokens,
        dynamic_text=engine.dynamic_text,
        text_multiple=_text_multiple(recipe, backbone, shapes, gpu=engine.for_gpu(targets)),
        ranges=recipe.block_ranges,
    )
    affinity = affinity_layers(backbone, shapes, recipe.affinity_every, recipe.affinity_blocks)
    import diffusers
    import onnxscript
    import torch

    export_key = stage_key(
        graph=_GRAPH_VERSION,
        weights=source.weights_sha256,
        dtype=recipe.dtype,
        latents=latents.model_dump(),
        batch=recipe.batch,
        form=recipe.form,
        affinity=affinity,
        external=recipe.weights == "inputs",
        ranges=recipe.block_ranges,
        versions=[torch.__version__, diffusers.__version__, onnxscript.__version__],
    )
    head_dims = sorted({site.head_dim for site in backbone.sites(shapes) if isinstance(site, AttentionSite)})
    attention = choose_attention(recipe.attention, engine.name, targets, contract, head_dims)
    engine_key = stage_key(
        export=export_key,
        backend=engine.name,
        versions=dict(engine.availability().versions),
        targets=targets,
        weights=recipe.weights,
        attention=attention,
        compiling=recipe.compiling.model_dump(),
        contract=contract.model_dump(mode="json"),
    )
    build_key = stage_key(engine=engine_key, recipe=recipe.model_dump(mode="json"), package=__version__)
    return BuildPlan(
        recipe=recipe,
        backbone=backbone,
        engine=engine,
        targets=targets,
        source=source,
        checkpoint=checkpoint,
        config=config,
        latents=latents,
        contract=contract,
        layers=layers(backbone, shapes),
        affinity_layers=affinity,
        attention=attention,
        default_plan=_default_plan(recipe, contract),
        weight_bytes=parameter_bytes(backbone, config, recipe.dtype),
        export_key=export_key,
        engine_key=engine_key,
        build_key=build_key,
    )


def _text_multiple(recipe: BuildRecipe, backbone: Backbone, shapes: torch.nn.Module, *, gpu: bool) -> int:
    """What masked texts are padded to a multiple of: as the recipe says, or as suits where the engine runs."""
    own = few_text_lengths(backbone, shapes, recipe.text_tokens) if gpu else 1
    return own if recipe.text_multiple is None else recipe.text_multiple


def _default_plan(recipe: BuildRecipe, contract: GraphContract) -> Plan:
    """What the recipe's own policy does; InputError where it lacks a bucket, before anything is built."""
    name, options = recipe.policy.name, recipe.policy.options
    try:
        policy = for_model(name, options, steps=recipe.steps, buckets=recipe.buckets, plans=recipe.plans)
        return policy.plan(recipe.steps, recipe.buckets, contract.shares)
    except InputError as error:
        raise InputError(f"A bundle's default policy must run on it, and here {name} can't. {error}") from error
