"""Tables of what a manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from accelaes_export.bundle.reading import Bundle
from accelaes_export.bundle.signing import signer
from accelaes_export.cli.progress import readable_size
from accelaes_export.contract.components import component_classes
from accelaes_export.contract.geometry import Geometry, Latents, Parity
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import InputError
from accelaes_export.policies import Drift, Plan, listed_budgets
from accelaes_export.policies.plan_quality import bracketed
from accelaes_export.runtime.policy_choice import policy_for, quality_of, steps_alone

if TYPE_CHECKING:
    from accelaes_export.building.component_verification import ComponentParity
    from accelaes_export.building.preset_verification import PresetParity


def overview(bundle: Bundle) -> Table:
    """Model, source, geometry, backend, versions and files."""
    manifest = bundle.manifest
    contract, latents, source = manifest.geometry.contract, manifest.geometry.latents, manifest.source
    window = ", or any other up to the model's limit" if contract.dynamic_text else ""
    if contract.dynamic_text and contract.masks_text and contract.text_multiple > 1:
        window = f", or more; texts are padded to a multiple of {contract.text_multiple}"
    segments = " + ".join(f"{s.length} ({', '.join(s.tokenizers)})" for s in manifest.text)
    weights = f"random, seed {source.seed}" if source.kind == "random" else f"{source.location}"
    size = sum(record.size for record in manifest.files.values())
    table = Table(title=str(bundle.path), title_style="bold", title_justify="left", box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("model", f"{manifest.model} ({manifest.family}, {manifest.form} form, {manifest.layers} blocks)"),
        ("weights", f"{weights}{f' at {source.revision}' if source.revision else ''}"),
        ("weights' SHA-256", source.weights_sha256),
        ("resolution", _resolution(latents)),
        ("image tokens", f"N = {contract.tokens} ({_patches(latents)})"),
        ("text tokens", f"M = {contract.text_tokens} = {segments}{window}"),
        ("batch, dtype", f"{contract.batch} ({contract.rows} rows a call), {contract.dtype}"),
        (
            "affinity",
            f"blocks {', '.join(map(str, manifest.affinity_layers))}"
            if manifest.affinity_layers
            else "no text, no mask",
        ),
        ("word scorer", f"{manifest.token_scorer}, {len(manifest.anchors)} anchors"),
        ("spatial CFG", "on by default" if manifest.spatial_cfg else "off by default"),
        ("backend", f"{manifest.backend.name} for {', '.join(manifest.backend.targets)}"),
        ("versions", ", ".join(f"{package} {version}" for package, version in manifest.backend.versions.items())),
        ("plugin", manifest.backend.plugin or "none"),
        ("files", f"{len(manifest.files)}, {readable_size(size)}: {', '.join(manifest.files)}"),
        (
            "defaults",
            f"{manifest.defaults.policy}, {manifest.defaults.steps} steps, guidance {manifest.defaults.guidance:g}",
        ),
        ("pipelines", ", ".join(manifest.call.pipelines)),
        ("made by", f"{manifest.created_by}, schema {manifest.schema_version}"),
        ("signed with", signer(bundle.path) or "nothing"),
    ):
        table.add_row(name, value)
    for note in manifest.backend.notes:
        table.add_row("note", note)
    return table


def _resolution(latents: Latents) -> str:
    sides = f"{latents.height * latents.vae_scale}x{latents.width * latents.vae_scale} (height x width)"
    if latents.frames is None:
        return sides
    return f"{sides}, {latents.size['num_frames']} frames ({latents.frames} latent frames)"


def _patches(latents: Latents) -> str:
    """Such as "8 x 6 patches of 2 x 2"; of videos frames come first."""
    counts, sides = [*latents.grid], [latents.patch, latents.patch]
    if latents.frames is not None:
        counts, sides = [latents.frames // latents.patch_frames, *counts], [latents.patch_frames, *sides]
    return f"{' x '.join(map(str, counts))} patches of {' x '.join(map(str, sides))}"


def buckets(manifest: Manifest) -> Table:
    """Every bucket with its n, its skip ratio and its share of the dense step's FLOPs."""
    table = Table("letter", "n/N", "n", "skip ratio", "GFLOPs a step", "share", title="Buckets", title_justify="left")
    geometry = manifest.geometry
    dense = geometry.bucket_flops.get(geometry.contract.tokens, 0)
    for k, (fraction, n) in enumerate(zip(manifest.bucket_fractions, geometry.contract.buckets, strict=True)):
        flops = geometry.bucket_flops.get(n)
        counted = ("", "") if flops is None or not dense else (f"{flops / 1e9:.3g}", f"{flops / dense:.1%}")
        letter = "D" if n == geometry.contract.tokens else chr(ord("a") + k)
        table.add_row(letter, f"{fraction:g}", str(n), f"{1 - fraction:g}", *counted)
    return table


def ranges(geometry: Geometry) -> Table | None:
    """Every range of blocks that a step may leave out, with its symbol in plans; None where there is none."""
    if not geometry.without:
        return None
    table = Table("digit", "blocks left out", "GFLOPs a step", "share", title="Block ranges", title_justify="left")
    dense = geometry.bucket_flops[geometry.contract.tokens]
    for k, (blocks, flops) in enumerate(zip(geometry.contract.ranges, geometry.range_flops, strict=True)):
        table.add_row(str(k), f"{blocks.label} of {blocks.of}", f"{flops / 1e9:.3g}", f"{flops / dense:.1%}")
    return table


def layerwise(geometry: Geometry) -> Table | None:
    """The parts of the layer-wise step by name, with what computing all of their tokens takes; None where there is
    none."""
    engine, own = geometry.layerwise, geometry.contract.layerwise
    if engine is None or own is None:
        return None
    title = f"Layer-wise step, ranked by {own.ranking}"
    table = Table("parts", "blocks", "GFLOPs a step", "share", title=title, title_justify="left")
    dense = geometry.bucket_flops[geometry.contract.tokens]
    flops: dict[str, list[float]] = {}
    for part in own.parts:
        one = engine.part_flops[part.label]
        flops.setdefault(part.name, []).append(one.once + one.token * geometry.contract.tokens)
    rest = engine.flops_of([0] * len(own.parts))
    for name, each in flops.items():
        table.add_row(name, str(len(each)), f"{sum(each) / 1e9:.3g}", f"{sum(each) / dense:.1%}")
    table.add_row("always", "", f"{rest / 1e9:.3g}", f"{rest / dense:.1%}")
    return table


def budgets(manifest: Manifest) -> Table:
    """What `--policy drift --budget` takes, for every budget there is a plan for: the bundle's own and drift's."""
    table = Table(
        *("budget", "steps", "cost", "θ, trend", "cache reach", "plan", "from", "as dense steps"),
        title="Plans of drift by budget",
        title_justify="left",
    )
    defaults = manifest.defaults
    for budget in listed_budgets(defaults.steps, defaults.plans):
        try:
            policy = policy_for(manifest, Drift.name, {"budget": budget})
            plan = policy.plan(steps_alone(policy, None, manifest.defaults.steps), manifest.sparse_fractions)
        except InputError:  # not with the default policy's options
            continue
        far = policy.extrapolation
        learned = far.coefficients is not None
        said = "learned" if learned else f"{far.theta:g}, {far.trend:g}"
        origin = "this model" if budget in defaults.plans else "every model"
        quality = quality_of(manifest, policy, str(plan))
        cells = (f"{budget:g}", str(len(plan)), f"{plan.cost:g}", said, f"{far.cache_reach:g}", str(plan), origin)
        table.add_row(*cells, "not measured" if quality is None else bracketed(quality.dense_steps))
    table.caption, table.caption_justify = "other budgets get a plan by the rule of docs/method.md", "left"
    return table


def presets(manifest: Manifest) -> Table | None:
    """Every policy that the bundle has as graphs: its plan where nobody asks for another; None where there is none."""
    found = manifest.geometry.presets
    if not found:
        return None
    table = Table("preset", "steps", "cost", "plan", "plans for", "programs", title="Presets", title_justify="left")
    for preset in found:
        plan = Plan(preset.plans[preset.steps], manifest.sparse_fractions, manifest.range_shares)
        planned = f"{min(preset.plans)} to {max(preset.plans)}" if len(preset.plans) > 1 else str(preset.steps)
        table.add_row(preset.name, str(preset.steps), f"{plan.cost:g}", str(plan), planned, ", ".join(preset.programs))
    return table


def preset_parity(comparisons: Iterable[PresetParity]) -> Table:
    """Each preset's run against its policy's in Python."""
    columns = ("preset", "steps", "max rel", "allowed", "focus tokens", "differing", "")
    table = Table(*columns, title="Presets against Python", title_justify="left")
    for p in comparisons:
        verdict = ("passed", "green") if p.passed else ("FAILED", "bold red")
        numbers = (f"{p.max_rel:.1e}", f"{p.tolerance:.1e}", str(p.focus), str(p.differing))
        table.add_row(p.name, str(p.steps), *numbers, Text(*verdict))
    return table


def components(manifest: Manifest) -> Table | None:
    """What the bundle has of the pipeline beside the transformer; None where it has nothing."""
    found, vae = manifest.components, manifest.geometry.vae
    if found is None:
        return None
    table = Table("component", "class", "dtype", "from", "size", title="Components", title_justify="left")

    def size(*files: str) -> str:
        return readable_size(sum(manifest.files[name].size for name in files))

    for name, encoder in found.encoders.items():
        ids = f"up to {encoder.length} ids of {encoder.tokenizer}"
        table.add_row(name, encoder.kind, encoder.dtype, ids, size(*encoder.graph.files))
    if found.vae is not None and vae is not None:
        whole = size(*vae.latents.files, *vae.decoder.files, *vae.encoder.files)
        table.add_row(
            "vae", found.vae.kind, found.vae.dtype, f"latents of {manifest.geometry.latents.asked_for}", whole
        )
    for name, tokenizer in found.tokenizers.items():
        table.add_row(name, tokenizer.kind, "", "text", size(*tokenizer.files))
    scheduler = component_classes(found.pipeline).get("scheduler", ("", "none"))[1]
    table.add_row("scheduler", scheduler, "", "", "")
    lacking = found.lacking()
    said = f"from the checkpoint: {', '.join(lacking)}" if lacking else "complete: no checkpoint is needed"
    table.caption, table.caption_justify = said, "left"
    return table


def component_parity(comparisons: Iterable[ComponentParity]) -> Table:
    """Each component against the checkpoint's own."""
    table = Table("component", "against", "differs by", "allowed", "", title="Components", title_justify="left")
    for p in comparisons:
        verdict = ("passed", "green") if p.passed else ("FAILED", "bold red")
        table.add_row(p.name, p.reference, p.found, p.allowed, Text(*verdict))
    return table


def tensors(contract: GraphContract, every_layer: bool) -> Table:
    """Inputs and outputs in the engine's order; cache tensors of equal shape are one row unless `every_layer`."""
    table = Table("", "tensor", "dtype", "shape", title="Tensors", title_justify="left")
    letters = f"B rows, n focus, m = {contract.tokens} - n background, M text"
    table.caption, table.caption_justify = letters, "left"
    for direction, specs in (("in", contract.inputs), ("out", contract.outputs)):
        for name, spec in _named(specs) if every_layer else _folded(specs):
            table.add_row(direction, name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]")
    return table


def _named(specs: Iterable[TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    return ((spec.name, spec) for spec in specs)


def _folded(specs: Iterable[TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    """cache.0.k, cache.1.k, ... of one shape as "cache.{l}.k  (24 layers)"; others as they are."""
    groups: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in specs:
        root, _, rest = spec.name.partition(".")
        layer, _, part = rest.partition(".")
        folds = root == "cache" and layer.isdigit()
        groups.setdefault((part, spec.dtype, spec.shape) if folds else (spec.name,), []).append(spec)
    for key, members in groups.items():
        if len(key) == 1:
            yield members[0].name, members[0]
        else:
            yield f"cache.{{l}}.{key[0]}  ({len(members)} layers)", members[0]


def parity(comparisons: Iterable[Parity], measured_on: str = "") -> Table:
    """Each bucket's largest absolute and relative error against its reference, and that of norms."""
    columns = ("n", "against", "max abs", "max rel", "allowed", "norm rel", "allowed", "")
    table = Table(*columns, title="Parity", title_justify="left")
    for p in comparisons:
        verdict = ("passed", "green") if p.passed else ("FAILED", "bold red")
        values = (p.max_abs, p.max_rel, p.tolerance, p.norm_rel, p.norm_tolerance)
        errors = ("" if value is None else f"{value:.1e}" for value in values)
        table.add_row(str(p.bucket), p.reference, *errors, Text(*verdict))
    if measured_on:
        table.caption, table.caption_justify = f"measured on {measured_on}", "left"
    return table
