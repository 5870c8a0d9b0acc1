"""Components: what a bundle has of a pipeline beside its transformer, as graphs in the engine's own format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.pipeline_parts import HALF_PRECISION, VAE, VAE_CLASSES, Part, PipelineParts, tokenizer_of
from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.building.stages import StageStore, stage_key
from accelaes_export.building.tokenizers import portable_form
from accelaes_export.contract.components import Autoencoder, AutoencoderGraphs, Components, TextEncoder, TokenizerFiles
from accelaes_export.contract.presets import GraphRecord
from accelaes_export.errors import InputError
from accelaes_export.memory import drop_weights, release

if TYPE_CHECKING:
    from accelaes_export.building.job import BuildJob
    from accelaes_export.contract.tensors import DTypeName
    from accelaes_export.graph.components import ComponentGraph
    from accelaes_export.progress import BuildProgress

FOLDER = "components"
"""In the bundle."""
_RECORD = "components.json"
_GRAPHS_VERSION = 3  # raise whenever an exported graph changes for the same component
_LEAST_ROWS = 8  # texts a call: words are embedded many at a time


@dataclass(frozen=True)
class MadeComponents:
    """What was asked for, and the stage its files are in."""

    components: Components
    vae: AutoencoderGraphs | None
    stage: Path

    def file(self, name: str) -> Path:
        """Where a file of the bundle is, by its name in it."""
        return self.stage / name.removeprefix(f"{FOLDER}/")


def made_components(job: BuildJob, store: StageStore, progress: BuildProgress) -> MadeComponents | None:
    """The job's components; made unless an earlier build left them. None where none were asked for."""
    parts = job.inputs.parts
    if parts is None:
        return None
    key = _key(job, parts)
    kept = store.find("components", key)
    if kept is not None:
        progress.reused("components", f"{kept.name} from an earlier build")
    else:
        kept = store.make("components", key, lambda folder: _Maker(job, parts, folder, progress).make())
        release()
    record = json.loads((kept / _RECORD).read_text(encoding="utf-8"))
    vae = record["vae"]
    return MadeComponents(
        Components.model_validate(record["components"]),
        None if vae is None else AutoencoderGraphs.model_validate(vae),
        kept,
    )


def component_bytes(job: BuildJob) -> list[int]:
    """Bytes of weights of each component that a job makes, as it will have them."""
    parts = job.inputs.parts
    described = () if parts is None else parts.described
    return [part.numbers * (4 if component_dtype(part, job) == "fp32" else 2) for part in described]


def component_dtype(part: Part, job: BuildJob) -> DTypeName:
    """What a text encoder or VAE computes in.

    CPUs compute in fp32. On GPUs it is the engine's dtype, unless that is fp16 and the model leaves its range inside
    (T5's feed-forward parts do; a VAE's config says so): bf16 then, or fp32 where the backend or GPU has no bf16 or a
    VAE shall keep its bits.
    """
    inputs, dtype = job.inputs, job.graph.contract.dtype
    if not inputs.backend.for_gpu(inputs.targets):
        return "fp32"
    if part.name == VAE:
        return "fp32" if dtype == "fp16" and part.config.get("force_upcast", True) else dtype
    if dtype != "fp16" or part.kind in HALF_PRECISION:
        return dtype
    try:
        inputs.backend.check("bf16", inputs.targets)
    except InputError:
        return "fp32"
    return "bf16"


def _key(job: BuildJob, parts: PipelineParts) -> str:
    import diffusers
    import onnxscript
    import torch
    import transformers

    inputs = job.inputs
    files = [file for own in parts.tokenizers.values() for file in own]
    return stage_key(
        graphs=_GRAPHS_VERSION,
        record=[kind.model_json_schema() for kind in (Components, AutoencoderGraphs)],
        wanted=inputs.recipe.components,
        index=dict(parts.index),
        scheduler=dict(parts.scheduler),
        weights=[(part.name, part.weights_sha256, component_dtype(part, job)) for part in parts.described],
        tokenizers=[(file.parent.name, file.name, file.read_text(encoding="latin-1")) for file in files],
        text=[segment.model_dump(mode="json") for segment in inputs.recipe.text],
        latents=job.graph.latents.model_dump(),
        contract=job.graph.contract.model_dump(mode="json"),
        backend=inputs.backend.name,
        targets=inputs.targets,
        versions=dict(inputs.backend.availability().versions)
        | {module.__name__: module.__version__ for module in (torch, diffusers, transformers, onnxscript)},
    )


class _Maker:
    """Makes the components of one job in a stage's folder."""

    def __init__(self, job: BuildJob, parts: PipelineParts, folder: Path, progress: BuildProgress) -> None:
        self._job, self._parts, self._folder, self._progress = job, parts, folder, progress
        self._rows = max(_LEAST_ROWS, 2 * job.graph.contract.batch)

    def make(self) -> None:
        tokenizers = dict(self._tokenizers())
        encoders, conditioning = self._text()
        vae, graphs = (None, None) if self._parts.vae is None else self._vae(self._parts.vae)
        components = Components(
            pipeline=dict(self._parts.index),
            scheduler=dict(self._parts.scheduler),
            tokenizers=tokenizers,
            encoders=encoders,
            conditioning=conditioning,
            vae=vae,
            cleaning=self._job.inputs.backbone.cleaning,
        ).sealed(graphs)
        record = {
            "components": components.model_dump(mode="json"),
            "vae": None if graphs is None else graphs.model_dump(mode="json"),
        }
        (self._folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")

    def _tokenizers(self) -> Iterator[tuple[str, TokenizerFiles]]:
        for name, files in self._parts.tokenizers.items():
            (self._folder / name).mkdir()
            for file in files:
                shutil.copyfile(file, self._folder / name / file.name)
            kind, written = self._parts.classes[name], tuple(f"{FOLDER}/{name}/{file.name}" for file in files)
            yield name, TokenizerFiles(kind=kind, files=written, portable=self._portable(name, kind, files[0].parent))

    def _portable(self, name: str, kind: str, folder: Path) -> str | None:
        """The tokenizer as one file, where it can be one and the length of its texts is known."""
        length = self._length(name)
        form = None if length is None else portable_form(folder, kind, length, self._padded_to)
        if form is None:
            return None
        (self._folder / f"{name}.json").write_text(form, encoding="utf-8")
        return f"{FOLDER}/{name}.json"

    @property
    def _padded_to(self) -> int | None:
        return self._job.inputs.backbone.text_padded_to

    def _text(self) -> tuple[dict[str, TextEncoder], GraphRecord | None]:
        from accelaes_export.graph.components import encoder_graph

        found, graphs = {}, {}
        for name, part in self._parts.encoders.items():
            dtype, length = component_dtype(part, self._job), self._length(tokenizer_of(name))
            if length is None:
                raise InputError(
                    f"No text positions come from {tokenizer_of(name)}, and {part.folder / 'config.json'} doesn't say "
                    "how many it takes (max_position_embeddings): leave text out of --components."
                )
            with self._progress.stage(name, f"{part.kind}, {part.size / 1e9:.2f} GB, in {dtype}"):
                read = part.read_weights(dtype)
                model = part.hollow(read, dtype)
                graph = encoder_graph(name, part.kind, model, read, dtype, length=length, rows=self._rows)
                files = self._compiled(graph)
                drop_weights(model)
            graphs[name] = graph
            found[name] = TextEncoder(
                kind=part.kind,
                config=dict(part.config),
                weights_sha256=part.weights_sha256,
                dtype=dtype,
                tokenizer=tokenizer_of(name),
                masked=self._job.inputs.backbone.masks_padding,
                length=length,
                padded_to=self._padded_to,
                rows=self._rows,
                graph=files,
            )
        return found, self._conditioning(graphs, found) if found else None

    def _conditioning(self, graphs: Mapping[str, ComponentGraph], encoders: Mapping[str, TextEncoder]) -> GraphRecord:
        from accelaes_export.graph.components import conditioning_graph

        inputs = self._job.inputs
        text = inputs.recipe.text
        with self._progress.stage("conditioning", ", ".join(graphs)):
            joined = conditioning_graph(
                inputs.backbone,
                inputs.config,
                self._job.graph.contract,
                graphs,
                {name: encoder.length for name, encoder in encoders.items()},
                {
                    name: segment.drop
                    for name, encoder in encoders.items()
                    for segment in text
                    if encoder.tokenizer in segment.tokenizers
                },
                runs=len(text),
                last=text[-1].length,
                rows=self._rows,
            )
            return self._compiled(joined)

    def _length(self, tokenizer: str) -> int | None:
        """Ids of a prompt: the positions its tokenizer fills, or as many as its encoder takes; None: nothing tells."""
        for segment in self._job.inputs.recipe.text:
            if tokenizer in segment.tokenizers:
                return segment.drop + (self._job.inputs.backbone.encoded_text or segment.length)
        for name, part in self._parts.encoders.items():
            length = part.config.get("max_position_embeddings")
            if tokenizer_of(name) == tokenizer and isinstance(length, int):
                return length
        return None

    def _vae(self, part: Part) -> tuple[Autoencoder, AutoencoderGraphs]:
        from accelaes_export.graph.components import vae_graphs

        job = self._job
        dtype, rows = component_dtype(part, job), job.graph.contract.batch
        with self._progress.stage(VAE, f"{part.kind}, {part.size / 1e9:.2f} GB, in {dtype}"):
            model: Any = part.load(dtype)
            graphs = vae_graphs(job.inputs.backbone, job.graph.latents, model, dtype, rows)
            latents, decoder, encoder = (self._compiled(graph) for graph in graphs)
            config = {name: value for name, value in model.config.items() if not name.startswith("_")}
        read = {name: getattr(model, name) for name in VAE_CLASSES[part.kind]}
        whole = Autoencoder(
            kind=part.kind,
            config=config,
            weights_sha256=part.weights_sha256,
            dtype=dtype,
            attributes={name: value for name, value in read.items() if not hasattr(value, "tolist")},
            buffers={name: tuple(value.tolist()) for name, value in read.items() if hasattr(value, "tolist")},
        )
        return whole, AutoencoderGraphs(latents=latents, decoder=decoder, encoder=encoder, rows=rows)

    def _compiled(self, graph: ComponentGraph) -> GraphRecord:
        inputs = self._job.inputs
        program = weight = onnx = None
        scratch = self._folder / "onnx"
        if inputs.backend.reads == "onnx":
            scratch.mkdir()
            onnx = graph.save_onnx(scratch)
        else:
            program, weight = graph.weights()
        request = GraphRequest(
            graph.name,
            graph.inputs,
            graph.outputs,
            graph.largest,
            inputs.targets,
            self._folder,
            onnx=onnx,
            program=program,
            weight=weight if program is not None and program.state_dict else None,
        )
        files = inputs.backend.compile_graph(request)
        shutil.rmtree(scratch, ignore_errors=True)
        return GraphRecord(
            files=tuple(f"{FOLDER}/{name}" for name in files), inputs=graph.inputs, outputs=graph.outputs
        )
