"""What a build is going to do: recipe, checkpoint, geometry and contract brought together and checked, stages named."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
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
from accelaes_export.backbones.pipeline_parts import PipelineParts
from accelaes_export.backbones.weights import Read, hollow_transformer, random_weights, stored_weights
from accelaes_export.backends import names_with
from accelaes_export.backends.base import Backend
from accelaes_export.building.attention import Attention, choose_attention
from accelaes_export.building.stages import stage_key
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Source
from accelaes_export.contract.tensors import BlockRange, GraphContract, Layerwise
from accelaes_export.errors import InputError
from accelaes_export.graph.layerwise import layerwise_contract
from accelaes_export.graph.ranges import contract_without
from accelaes_export.graph.tensors import affinity_layers, few_text_lengths, graph_contract, layers
from accelaes_export.options import parse_label
from accelaes_export.policies import DiffSparse, ModelFacts, Plan, Policy, from_name
from accelaes_export.recipes import BuildRecipe
from accelaes_export.runtime.policy_choice import require_text_for

if TYPE_CHECKING:
    import torch

    from accelaes_export.graph.focus_step import FocusStep

_GRAPH_VERSION = 4  # raise whenever the exported graph changes for the same model


@dataclass(frozen=True)
class Inputs:
    """What a build is made of.

    Attributes:
        checkpoint: None for random weights.
        config: the transformer's, complete.
        targets: as the backend will be asked to compile for.
        parts: what of the pipeline the bundle shall have beside the transformer; None: nothing.
    """

    recipe: BuildRecipe
    backbone: Backbone
    source: Source
    checkpoint: Checkpoint | None
    config: dict[str, Any]
    backend: Backend
    targets: tuple[str, ...]
    parts: PipelineParts | None = None

    @property
    def weight_copies(self) -> float:
        """How many times the compiler holds the weights."""
        return self.backend.weight_copies(self.recipe.weights, self.recipe.compiling, self.targets)

    def read_weights(self, dtype: str | None = None) -> Read:
        """The weights, one tensor at a time, in `dtype` or the build's own."""
        dtype = dtype or self.recipe.dtype
        if self.checkpoint is not None:
            return stored_weights(self.checkpoint.files, dtype)
        assert self.source.seed is not None
        return random_weights(parameter_shapes(self.backbone, self.config), dtype, self.source.seed)

    def load_hollow(self, read: Read) -> torch.nn.Module:
        """The transformer to be traced: its large matrices are left out."""
        return hollow_transformer(self.backbone, self.config, read, self.recipe.dtype)

    def load(self) -> torch.nn.Module:
        """The transformer, from its checkpoint or its seed."""
        if self.checkpoint is None:
            assert self.source.seed is not None
            return random_transformer(self.backbone, self.config, self.recipe.dtype, self.source.seed)
        return load_transformer(self.checkpoint, self.backbone, self.recipe.dtype)


@dataclass(frozen=True)
class Graph:
    """One focus step to be exported and compiled, and what it depends on.

    Attributes:
        layers: L of the whole model.
        affinity_layers: the blocks whose text attention makes the affinity.
        weight_bytes: of the weights it has.
    """

    latents: Latents
    contract: GraphContract
    layers: int
    affinity_layers: tuple[int, ...]
    weight_bytes: int


@dataclass(frozen=True)
class Keys:
    """Hashes of everything a stage depends on (stages.py): the exported graph, the engine, the bundle."""

    export: str
    engine: str
    build: str


@dataclass(frozen=True)
class PresetChoice:
    """A policy that the bundle shall have as graphs.

    Attributes:
        name: as it was asked for.
        steps: T where nobody asks for another.
    """

    name: str
    policy: Policy
    steps: int


@dataclass(frozen=True)
class BuildJob:
    """Everything a build decides before it starts working.

    A build makes one engine of the focus step, one more for every range of blocks that steps may leave out, and one of
    the layer-wise step where it is asked for: `parts` are all of them, each a job with the graph and keys of its own.
    """

    inputs: Inputs
    graph: Graph
    keys: Keys
    attention: Attention
    default_plan: Plan
    presets: tuple[PresetChoice, ...]

    @property
    def parts(self) -> tuple[BuildJob, ...]:
        """This job's focus step, then the step without each of its ranges, then the layer-wise step."""
        contract = self.graph.contract
        layerwise = [] if contract.layerwise is None else [self._layerwise(contract.layerwise)]
        return (self, *(self._without(blocks) for blocks in contract.ranges), *layerwise)

    def _without(self, blocks: BlockRange) -> BuildJob:
        nearly = int(blocks.share * self.graph.weight_bytes)  # what stands around the blocks is left out
        contract = contract_without(self.graph.contract, blocks)
        return self._beside(contract, nearly, without=(blocks.first, blocks.last))

    def _layerwise(self, step: Layerwise) -> BuildJob:
        contract = layerwise_contract(self.graph.contract)
        return self._beside(contract, self.graph.weight_bytes, layerwise=step.model_dump(mode="json"))

    def _beside(self, contract: GraphContract, weight_bytes: int, **which: Any) -> BuildJob:
        export = stage_key(export=self.keys.export, **which)
        engine = stage_key(engine=self.keys.engine, export=export, contract=contract.model_dump(mode="json"))
        return replace(
            self,
            graph=replace(self.graph, contract=contract, weight_bytes=weight_bytes),
            keys=replace(self.keys, export=export, engine=engine),
        )

    def focus_step(self, model: torch.nn.Module) -> FocusStep:
        """The step of `model`, which may be hollow or on the meta device."""
        from accelaes_export.graph.focus_step import FocusStep

        graph = self.graph
        return FocusStep(model, self.inputs.backbone, graph.contract, graph.latents, graph.affinity_layers).eval()


def build_job(recipe: BuildRecipe, backend: Backend, targets: tuple[str, ...] | None, seed: int | None) -> BuildJob:
    """Check everything that can be checked before the weights are read, and name the stages.

    Args:
        targets: the backend's default if None.
        seed: of random weights; None for the recipe's checkpoint.

    Raises:
        InputError, MissingComponentError: what was asked for can't be.
    """
    inputs = _inputs(recipe, backend, backend.default_targets if targets is None else targets, seed)
    shapes = empty_transformer(inputs.backbone, inputs.config)
    graph = _graph(inputs, shapes)
    sites = inputs.backbone.sites(shapes)
    head_dims = sorted({site.head_dim for site in sites if isinstance(site, AttentionSite)})
    attention = choose_attention(recipe.attention, backend, inputs.targets, graph.contract, head_dims)
    keys, plan = _keys(inputs, graph, attention), _default_plan(recipe, graph.contract)
    return BuildJob(inputs, graph, keys, attention, plan, _presets(recipe, graph.contract))


def _inputs(recipe: BuildRecipe, backend: Backend, targets: tuple[str, ...], seed: int | None) -> Inputs:
    backend.check(recipe.dtype, targets)
    if recipe.weights == "inputs" and not backend.weights_beside:
        raise InputError(
            f"Weights as inputs are for {' and '.join(names_with('weights_beside'))}, whose builders copy them; "
            f"{backend.name} doesn't: leave --weights out."
        )
    if recipe.layerwise is not None and not backend.layerwise:
        raise InputError(
            f"Layer-wise steps are for {' and '.join(names_with('layerwise'))}: {backend.name} compiles a profile for "
            "every number of tokens, and here each part has its own at each step; leave --layerwise out."
        )
    backbone = backbone_of(recipe.family)
    if seed is None:
        checkpoint = resolve(recipe.checkpoint, backbone, variant=recipe.variant, whole=bool(recipe.components))
        parts = PipelineParts.of(checkpoint, recipe.components) if recipe.components else None
        return Inputs(recipe, backbone, checkpoint.source, checkpoint, dict(checkpoint.config), backend, targets, parts)
    if recipe.components:
        raise InputError(
            f"Random weights were asked for, and the components {', '.join(recipe.components)}, which come from a "
            "checkpoint: leave one of them out."
        )
    config = complete_config(backbone, recipe.architecture())
    return Inputs(recipe, backbone, random_source(backbone, config, seed), None, config, backend, targets)


def _graph(inputs: Inputs, shapes: torch.nn.Module) -> Graph:
    recipe, backbone = inputs.recipe, inputs.backbone
    latents = backbone.latents(inputs.config, recipe.resolution, recipe.vae_scale, recipe.frames)
    contract = graph_contract(
        backbone,
        shapes,
        latents,
        form=recipe.form,
        dtype=recipe.dtype,
        batch=recipe.batch,
        fractions=recipe.buckets,
        text_tokens=recipe.text_tokens,
        dynamic_text=inputs.backend.dynamic_text,
        text_multiple=_text_multiple(inputs, shapes),
        ranges=recipe.block_ranges,
        ranking=recipe.layerwise,
    )
    return Graph(
        latents,
        contract,
        layers(backbone, shapes),
        affinity_layers(backbone, shapes, recipe.affinity_every, recipe.affinity_blocks),
        parameter_bytes(backbone, inputs.config, recipe.dtype),
    )


def _text_multiple(inputs: Inputs, shapes: torch.nn.Module) -> int:
    """What masked texts are padded to a multiple of: as the recipe says, or as suits where the engine runs."""
    recipe = inputs.recipe
    if recipe.text_multiple is not None:
        return recipe.text_multiple
    gpu = inputs.backend.for_gpu(inputs.targets)
    return few_text_lengths(inputs.backbone, shapes, recipe.text_tokens) if gpu else 1


def _keys(inputs: Inputs, graph: Graph, attention: Attention) -> Keys:
    import diffusers
    import onnxscript
    import torch

    recipe, backend = inputs.recipe, inputs.backend
    export = stage_key(
        graph=_GRAPH_VERSION,
        weights=inputs.source.weights_sha256,
        dtype=recipe.dtype,
        latents=graph.latents.model_dump(),
        batch=recipe.batch,
        form=recipe.form,
        affinity=graph.affinity_layers,
        external=recipe.weights == "inputs",
        ranges=recipe.block_ranges,
        versions=[torch.__version__, diffusers.__version__, onnxscript.__version__],
    )
    engine = stage_key(
        export=export,
        backend=backend.name,
        versions=dict(backend.availability().versions),
        targets=inputs.targets,
        weights=recipe.weights,
        attention=attention,
        compiling=asdict(recipe.compiling),
        contract=graph.contract.model_dump(mode="json"),
    )
    parts = inputs.parts
    components = None if parts is None else [(part.name, part.weights_sha256) for part in parts.described]
    build = stage_key(engine=engine, recipe=recipe.model_dump(mode="json"), components=components, package=__version__)
    return Keys(export, engine, build)


def _presets(recipe: BuildRecipe, contract: GraphContract) -> tuple[PresetChoice, ...]:
    """The recipe's presets; InputError where one can't run on the bundle, before anything is built."""
    found = []
    for label in recipe.presets:
        name, options = parse_label(label)
        if name == recipe.policy.name:
            options = recipe.policy.options | options
        try:
            _refuse_layers(name)
            policy = from_name(name, options, ModelFacts(recipe.steps, recipe.buckets, recipe.plans))
            steps = policy.own_steps or recipe.steps
            require_text_for(policy, policy.plan(steps, recipe.buckets, contract.shares), contract)
        except InputError as error:
            raise InputError(f"The preset {label} can't run on this bundle. {error}") from error
        found.append(PresetChoice(label, policy, steps))
    return tuple(found)


def _default_plan(recipe: BuildRecipe, contract: GraphContract) -> Plan:
    """What the recipe's own policy does; InputError where it lacks a bucket, before anything is built."""
    name, options = recipe.policy.name, recipe.policy.options
    try:
        _refuse_layers(name)
        policy = from_name(name, options, ModelFacts(recipe.steps, recipe.buckets, recipe.plans))
        return policy.plan(recipe.steps, recipe.buckets, contract.shares)
    except InputError as error:
        raise InputError(f"A bundle's default policy must run on it, and here {name} can't. {error}") from error


def _refuse_layers(name: str) -> None:
    """InputError for a policy that comes with a schedule, which is given to a run and isn't part of a bundle."""
    if name == DiffSparse.name:
        raise InputError("Policy diffsparse is given to a run with its schedule; leave it out here.")
