"""A pipeline out of a bundle: diffusers' own, with stand-ins for models whose graphs the bundle has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from accelaes_export.backends.graphs import OpenedGraph
from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.components import (
    ATTENTION_MASK,
    HIDDEN,
    INPUT_IDS,
    MOMENTS,
    SAMPLE,
    Autoencoder,
    AutoencoderGraphs,
    Components,
    TextEncoder,
    Z,
    component_classes,
)
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.presets import GraphRecord
from accelaes_export.errors import BundleError, InputError, first_line
from accelaes_export.runtime.stand_in import component_config


def dtype_around(bundle: Bundle) -> str:
    """What a pipeline's other models compute in: the engine's dtype, but fp32 on a CPU whatever that is.

    Half precision is slow there, or missing.
    """
    return bundle.manifest.geometry.contract.dtype if bundle.session().device.type == "cuda" else "fp32"


def components_of(bundle: Bundle) -> dict[str, Any]:
    """What a bundle has of a pipeline, by the pipeline's attribute; its scheduler where it has anything.

    Raises:
        BundleError: it names classes that aren't tokenizers and schedulers, or files that can't be read.
    """
    components = bundle.manifest.components
    if components is None:
        return {}
    device = bundle.session().device
    dtype = torch_dtype(dtype_around(bundle))
    found: dict[str, Any] = {"scheduler": _scheduler(bundle, components)}
    for name, tokenizer in components.tokenizers.items():
        found[name] = _tokenizer(bundle, tokenizer.kind, tokenizer.folder)
    for name, encoder in components.encoders.items():
        found[name] = BundledTextEncoder(name, encoder, bundle.graph(encoder.graph), device, dtype)
    if components.vae is not None and bundle.manifest.geometry.vae is not None:
        found["vae"] = BundledAutoencoder(bundle, components.vae, bundle.manifest.geometry.vae, device, dtype)
    return found


def assembled(bundle: Bundle, components: Components, found: Mapping[str, Any]) -> Any:
    """The bundle's diffusers pipeline of these components, without a transformer.

    Raises:
        BundleError: its class isn't one that the bundle serves.
    """
    import diffusers

    index = components.pipeline
    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if name in bundle.manifest.call.pipelines else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise BundleError(
            f"Bundle {bundle.path} is of a {name}, which is no pipeline of its family that diffusers "
            f"{diffusers.__version__} has; install the release it was built with, or build it again."
        )
    saved = component_classes(index)
    given: dict[str, Any] = {}
    for argument in inspect.signature(kind.__init__).parameters:
        if argument in saved or isinstance(index.get(argument), list):
            given[argument] = found.get(argument)  # None for the transformer, and for what was saved as null
        elif argument in index:
            given[argument] = index[argument]
    pipe: Any = kind(**given)
    # Where all of it came from, which tells whose weights run (weights.py).
    pipe.register_to_config(_name_or_path=bundle.manifest.source.location)
    return pipe


def _tokenizer(bundle: Bundle, kind: str, folder: str) -> Any:
    import transformers

    found = getattr(transformers, kind, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)):
        raise BundleError(
            f"Bundle {bundle.path} has a tokenizer of the class {kind}, which is none of transformers "
            f"{transformers.__version__}; install the release it was built with, or build it again."
        )
    try:
        return found.from_pretrained(str(bundle.path / folder), local_files_only=True)
    except Exception as error:  # whatever a tokenizer makes of its files
        raise BundleError(
            f"The tokenizer {bundle.path / folder} can't be read: {first_line(error)}; build the bundle again."
        ) from error


def _scheduler(bundle: Bundle, components: Components) -> Any:
    import diffusers

    kind = component_classes(components.pipeline).get("scheduler", ("", ""))[1]
    found = getattr(diffusers, kind, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise BundleError(
            f"Bundle {bundle.path} has a scheduler of the class {kind or 'none'}, which is none of diffusers "
            f"{diffusers.__version__}; install the release it was built with, or build it again."
        )
    return found.from_config(components.scheduler)


class _StandIn(torch.nn.Module):
    """Stands in a pipeline for a model that a bundle has as graphs.

    Attributes:
        config: the model's, as pipelines read it.
    """

    def __init__(self, what: str, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self._what = what
        # Of no numbers: what asks a module where and in what it computes, or moves it, finds a parameter.
        self.stand_in = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.stand_in.dtype

    @property
    def device(self) -> torch.device:
        return self.stand_in.device

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"The {self._what} of this pipeline is a bundle's graph, and has no {name}; load the pipeline from its "
                "checkpoint for what needs it."
            ) from None

    def _called(self, graph: OpenedGraph, rows: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs for any number of rows, at most `rows` at a time, where and in what this module is."""
        parts = [graph(part) for part in _parts(tensors, rows)]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
        return {name: tensor.to(self.device, self.dtype) for name, tensor in whole.items()}


def _parts(tensors: Mapping[str, torch.Tensor], rows: int) -> Iterator[dict[str, torch.Tensor]]:
    many = len(next(iter(tensors.values())))
    for first in range(0, many, rows):
        yield {name: tensor[first : first + rows] for name, tensor in tensors.items()}


class BundledTextEncoder(_StandIn):
    """A text encoder: same call, what pipelines read of its output."""

    def __init__(
        self, name: str, record: TextEncoder, graph: OpenedGraph, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(name, component_config(record.config, f"The {name} of this bundle"), device, dtype)
        self._record, self._graph = record, graph

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> EncodedText:
        """ids [b, M] to their embeddings.

        Raises:
            InputError: more ids than the graph takes, or arguments that it hasn't.
        """
        unknown = [name for name, value in others.items() if value is not None and name != "return_dict"]
        if unknown:
            raise InputError(
                f"The {self._what} was called with {unknown[0]}, and a bundle's takes ids and their mask alone; load "
                "the pipeline from its checkpoint for what needs it."
            )
        if input_ids.shape[1] > self._record.length:
            raise InputError(
                f"The {self._what} was given {input_ids.shape[1]} ids, and the bundle's takes {self._record.length}: "
                f"call the pipeline with max_sequence_length={self._record.length}, or build a bundle for more."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # One id alone is a size that isn't traced; a masked one behind it changes nothing.
        short = input_ids.shape[1] == 1
        ids = {INPUT_IDS: input_ids, ATTENTION_MASK: mask}
        if short:
            ids = {name: torch.nn.functional.pad(tensor, (0, 1)) for name, tensor in ids.items()}
        found = self._called(self._graph, self._record.rows, ids)
        if short:
            per_token = {spec.name for spec in self._record.graph.outputs if len(spec.shape) == 3}
            found = {name: tensor[:, :1] if name in per_token else tensor for name, tensor in found.items()}
        return EncodedText(self._what, found)


class EncodedText:
    """What an encoder gave, as transformers' outputs are read: by name, by number, and hidden states by layer."""

    def __init__(self, what: str, outputs: Mapping[str, torch.Tensor]) -> None:
        self._what = what
        self._outputs = {name: tensor for name, tensor in outputs.items() if not name.startswith(HIDDEN)}
        states = {int(name.removeprefix(HIDDEN)): tensor for name, tensor in outputs.items() if name.startswith(HIDDEN)}
        self.hidden_states = _HiddenStates(what, states)

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name not in self._outputs:
            raise AttributeError(f"The {self._what} of a bundle gives {', '.join(self._outputs)}, and no {name}.")
        return self._outputs[name]

    def __getitem__(self, k: int | str) -> torch.Tensor:
        return self._outputs[k] if isinstance(k, str) else list(self._outputs.values())[k]


class _HiddenStates:
    """Those that the family's pipelines read."""

    def __init__(self, what: str, states: Mapping[int, torch.Tensor]) -> None:
        self._what, self._states = what, states

    def __getitem__(self, k: int) -> torch.Tensor:
        if k not in self._states:
            kept = ", ".join(map(str, self._states)) or "none"
            raise InputError(
                f"The hidden states {k} of the {self._what} were asked for (clip_skip does), and the bundle has {kept}"
                ": leave clip_skip out, or load the pipeline from its checkpoint."
            )
        return self._states[k]


class BundledAutoencoder(_StandIn):
    """A VAE: decodes and encodes pictures of the bundle's size."""

    def __init__(
        self,
        bundle: Bundle,
        record: Autoencoder,
        graphs: AutoencoderGraphs,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__("vae", component_config(record.config, "The VAE of this bundle"), device, dtype)
        for name, value in record.attributes.items():
            setattr(self, name, value)
        for name, numbers in record.buffers.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32, device=device))
        self._graphs = graphs
        self._decoder, self._encoder = bundle.graph(graphs.decoder), bundle.graph(graphs.encoder)
        self._size = bundle.manifest.geometry.latents.asked_for

    def decode(self, z: torch.Tensor, temb: Any = None, return_dict: bool = True, **_: Any) -> Any:
        """[b, C, Hl, Wl] to pictures [b, 3, H, W], or [b, C, Fl, Hl, Wl] to videos [b, 3, F, H, W].

        Args:
            temb: a timestep, as some VAEs of videos take; a bundle's has none.

        Raises:
            InputError: latents of another size, or a timestep.
        """
        if isinstance(temb, bool):  # AutoencoderKL's second argument is `return_dict`
            temb, return_dict = None, temb
        if temb is not None:
            raise InputError("The bundle's VAE takes no timestep; call decode with latents alone.")
        sample = self._run(self._decoder, self._graphs.decoder, {Z: z})[SAMPLE]
        if not return_dict:
            return (sample,)
        from diffusers.models.autoencoders.vae import DecoderOutput

        return DecoderOutput(sample=sample)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Pictures [b, 3, H, W], or videos [b, 3, F, H, W], to the distribution of their latents.

        Raises:
            InputError: pictures of another size.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        moments = self._run(self._encoder, self._graphs.encoder, {SAMPLE: x})[MOMENTS]
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def enable_slicing(self) -> None:
        """Nothing changes: as many pictures are worked at a time as the bundle is for."""

    def disable_slicing(self) -> None:
        """Nothing changes."""

    def _run(
        self, graph: OpenedGraph, record: GraphRecord, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        for spec in record.inputs:
            given, wanted = ("x".join(map(str, shape[1:])) for shape in (tensors[spec.name].shape, spec.shape))
            if given != wanted:
                raise InputError(
                    f"The bundle's VAE was given {given}, and it is for {wanted} ({self._size}): call "
                    "the pipeline with this size, or build a bundle for the other."
                )
        return self._called(graph, self._graphs.rows, tensors)
