"""A pipeline's components as graphs: text encoders, what becomes of their outputs, and the VAE around latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from accelaes_export.backbones import Backbone
from accelaes_export.backbones.pipeline_parts import ENCODER_OUTPUTS, tokenizer_of
from accelaes_export.backbones.weights import Read, is_hollow
from accelaes_export.contract.components import (
    ATTENTION_MASK,
    HIDDEN,
    IMAGE,
    INPUT_IDS,
    LATENTS,
    MOMENTS,
    SAMPLE,
    Z,
)
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import DTypeName, GraphContract, TensorSpec
from accelaes_export.errors import BuildError, InputError, first_line
from accelaes_export.graph.export import quiet, write_onnx

_MODEL = "model."  # where a graph's module has the component
_SIZE_WORDS = {2: "pictures of {}x{}", 3: "videos of {}x{} and {} frames"}
_LEAST = {"b": 1, "M": 2}
_EXAMPLE = {"b": 2, "M": 6}  # sizes that are traced: 0 and 1 would be taken for constants


@dataclass(frozen=True)
class ComponentGraph:
    """A component as it is exported.

    Attributes:
        module: takes the inputs, as many arguments, and gives the outputs, both in order.
        largest: sizes of the letters b and M.
        read: the component's weights by name, for those the module was made without.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    largest: Mapping[str, int]
    read: Read = field(default=lambda _: None)

    def trace(self) -> torch.export.ExportedProgram:
        """As a torch program on the CPU; large matrices that weren't there are memory nobody has written.

        Raises:
            BuildError: tracing failed.
        """
        letters = {
            letter: torch.export.Dim(letter, min=self._with_dropped(_LEAST)[letter], max=max(2, most))
            for letter, most in self.largest.items()
        }
        shapes = tuple(
            {axis: letters[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in self.inputs
        )
        try:
            with torch.no_grad(), quiet():
                return torch.export.export(self.module, self._example(), dynamic_shapes=(shapes,), strict=False)
        except Exception as error:
            raise BuildError(f"torch.export could not trace the {self.name}: {first_line(error)}") from error

    def save_onnx(self, folder: Path) -> Path:
        """Write `NAME.onnx` and, over 256 MB, its weights beside it; each is read when it is written."""
        path = folder / f"{self.name}.onnx"
        write_onnx(self.trace(), self.inputs, self.outputs, path, self._weight, fuse=False)
        return path

    def weights(self) -> tuple[torch.export.ExportedProgram, Read]:
        """The program for a compiler that takes its weights apart, and the weights by their names in it."""
        own = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        left_out = {name for name, tensor in own.items() if is_hollow(tensor)}
        for name in left_out:
            own[name].data = torch.empty(own[name].shape, dtype=own[name].dtype)  # takes no room until it is written
        program = self.trace()
        constants = {**own, **program.constants}

        def read(name: str) -> torch.Tensor | None:
            return self._weight(name) if name in left_out else constants.get(name)

        return program, read

    def _weight(self, name: str) -> torch.Tensor | None:
        """By its name in the program."""
        return self.read(name.removeprefix(_MODEL))

    def _example(self) -> tuple[torch.Tensor, ...]:
        numbers = torch.Generator().manual_seed(0)
        example = self._with_dropped(_EXAMPLE)
        sizes = {letter: min(example[letter], max(2, most)) for letter, most in self.largest.items()}
        return tuple(
            torch.ones(spec.sized(sizes), dtype=torch.int64)
            if spec.dtype == "int64"
            else torch.randn(spec.sized(sizes), generator=numbers).to(torch_dtype(spec.dtype))
            for spec in self.inputs
        )

    def _with_dropped(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """M counts ids at a text's beginning that no output has."""
        return {**sizes, "M": sizes["M"] + max(spec.less("M") for spec in self.outputs)}


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._outputs = outputs

    def forward(self, *text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(input_ids=text[0], attention_mask=text[1], output_hidden_states=True)
        return tuple(encoder_output(found, name) for name in self._outputs)


def encoder_output(found: Any, name: str) -> torch.Tensor:
    """One of the outputs of a transformers model by the name it has in a bundle."""
    tensor = found.hidden_states[int(name.removeprefix(HIDDEN))] if name.startswith(HIDDEN) else getattr(found, name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def encoder_graph(
    name: str, kind: str, model: torch.nn.Module, read: Read, dtype: DTypeName, *, length: int, rows: int
) -> ComponentGraph:
    """A text encoder, of at most `rows` texts of at most `length` ids."""
    names = ENCODER_OUTPUTS[kind]
    module = _Encoder(model, names)
    text = tuple(TensorSpec(name=each, dtype="int64", shape=("b", "M")) for each in (INPUT_IDS, ATTENTION_MASK))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.ones(_EXAMPLE["b"], _EXAMPLE["M"], dtype=torch.int64)
        made = model(input_ids=ids, output_hidden_states=True)  # some look into a mask, which has no numbers here
        shapes = [tuple(encoder_output(made, name).shape) for name in names]
    outputs = tuple(
        TensorSpec(name=each, dtype=dtype, shape=("b", "M", shape[-1]) if len(shape) == 3 else ("b", shape[-1]))
        for each, shape in zip(names, shapes, strict=True)
    )
    return ComponentGraph(name, module, text, outputs, {"b": rows, "M": length}, read)


class _Conditioning(torch.nn.Module):
    def __init__(
        self, join: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]], dropped: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.join, self._dropped = join, dropped
        self.names: list[str] = []
        self.outputs: tuple[TensorSpec, ...] = ()

    def placed(self, encoded: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Without the ids that have no position."""
        return {name: x[:, self._dropped[name] :] if name in self._dropped else x for name, x in encoded.items()}

    def forward(self, *encoded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = self.join(self.placed(dict(zip(self.names, encoded, strict=True))))
        made = {spec.name: made[spec.name].to(torch_dtype(spec.dtype)) for spec in self.outputs}
        return tuple(tensor.clone() for tensor in made.values())  # an output isn't an input


class _Noted(dict[str, torch.Tensor]):
    """Notes what is read of it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (notes it)


def conditioning_graph(
    backbone: Backbone,
    config: Mapping[str, Any],
    contract: GraphContract,
    encoders: Mapping[str, ComponentGraph],
    lengths: Mapping[str, int],
    dropped: Mapping[str, int],
    *,
    runs: int,
    last: int,
    rows: int,
) -> ComponentGraph:
    """What the encoders' outputs become before the engine gets them.

    Args:
        lengths: ids of a prompt, by encoder.
        dropped: of these, how many at the beginning have no position, by encoder.
        runs: of text positions that the engine has. Of several, each has its own length; of one, any.
        last: positions of the last of them.
    """
    several, less = runs > 1, 0 if runs > 1 else max(dropped.values(), default=0)

    def located(encoder: str, spec: TensorSpec, name: str) -> TensorSpec:
        shape = tuple(lengths[encoder] if several and d == "M" else d for d in spec.shape)
        return spec.model_copy(update={"name": name, "shape": shape})

    given: dict[str, TensorSpec] = {}
    cut: dict[str, int] = {}
    for encoder, graph in encoders.items():
        specs = {f"{encoder}.{spec.name}": spec for spec in graph.outputs}
        specs[f"{tokenizer_of(encoder)}.{ATTENTION_MASK}"] = graph.inputs[1]
        given |= {name: located(encoder, spec, name) for name, spec in specs.items()}
        if dropped.get(encoder):
            cut |= {name: dropped[encoder] for name, spec in specs.items() if "M" in spec.shape}
    module = _Conditioning(lambda encoded: backbone.text_conditioning(encoded, config, last), cut)
    sizes = {**_EXAMPLE, "M": _EXAMPLE["M"] + less}
    example = _Noted(module.placed({name: torch.zeros(spec.sized(sizes)) for name, spec in given.items()}))
    made = module.join(example)
    module.names = list(example.read)
    wanted = {spec.name: spec for spec in contract.inputs if spec.name in made}
    if wanted.keys() != made.keys():
        raise BuildError(f"The text encoders make {', '.join(made.keys() - wanted.keys())}, which the engine has not.")
    outputs, behind = [], f"M-{less}" if less else "M"
    for name, tensor in made.items():
        rest = wanted[name].shape[1:]
        if [d for d in rest if isinstance(d, int)] != [
            size for d, size in zip(rest, tensor.shape[1:], strict=True) if isinstance(d, int)
        ]:
            raise InputError(
                f"The text encoders make {name} {list(tensor.shape[1:])} wide, and the transformer takes "
                f"{list(rest)}: they aren't of one pipeline."
            )
        shape = tuple(d if d != "M" else tensor.shape[axis] if several else behind for axis, d in enumerate(rest, 1))
        outputs.append(wanted[name].model_copy(update={"shape": ("b", *shape)}))
    module.outputs = tuple(outputs)
    largest = {"b": rows} | ({} if several else {"M": last + less})
    return ComponentGraph("conditioning", module, tuple(given[name] for name in module.names), module.outputs, largest)


class _DecoderLatents(torch.nn.Module):
    def __init__(self, backbone: Backbone, latents: Latents, model: Any) -> None:
        super().__init__()
        self._unscaled = lambda given: backbone.decoder_latents(given, latents, model)

    def forward(self, *latents: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self._unscaled(latents[0])
        return z.clone()  # an output isn't an input


class _Decoder(torch.nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype, *, video: bool) -> None:
        super().__init__()
        self.model = model
        self._dtype, self._video = dtype, video

    def forward(self, *z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.model.decode(z[0].to(self._dtype), return_dict=False)[0].float()
        shown = sample if self._video or sample.dim() == 4 else sample[:, :, 0]
        image = ((shown * 0.5 + 0.5).clamp(0, 1) * 255).round()  # as diffusers' image processor
        return sample, image.movedim(1, -1)


class _ImageEncoder(torch.nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, *sample: torch.Tensor) -> torch.Tensor:
        moments: torch.Tensor = self.model.encode(sample[0].to(self._dtype)).latent_dist.parameters
        return moments.float()


def vae_graphs(
    backbone: Backbone, latents: Latents, model: Any, dtype: DTypeName, rows: int
) -> tuple[ComponentGraph, ComponentGraph, ComponentGraph]:
    """What decoding takes of the denoised latents, the decoder, and the encoder; of at most `rows` pictures.

    Raises:
        InputError: a VAE that makes pictures or videos of another size than the recipe says.
    """
    computed = torch_dtype(dtype)
    unscale, encoder = _DecoderLatents(backbone, latents, model), _ImageEncoder(model, computed)
    decoder = _Decoder(model, computed, video=latents.frames is not None)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        z = unscale(torch.ones(1, *latents.shape))
        sample, image = decoder(z)
        moments = encoder(sample)
    _check_size(latents, sample)

    def spec(name: str, shape: Sequence[int]) -> TensorSpec:
        return TensorSpec(name=name, dtype="fp32", shape=("b", *shape))

    taken, given = spec(Z, z.shape[1:]), spec(LATENTS, latents.shape)
    made = spec(SAMPLE, sample.shape[1:])
    shown, distribution = spec(IMAGE, image.shape[1:]), spec(MOMENTS, moments.shape[1:])
    most = {"b": rows}
    return (
        ComponentGraph("vae_latents", unscale, (given,), (taken,), most),
        ComponentGraph("vae_decoder", decoder, (taken,), (made, shown), most),
        ComponentGraph("vae_encoder", encoder, (made,), (distribution,), most),
    )


def _check_size(latents: Latents, sample: torch.Tensor) -> None:
    """InputError unless a VAE makes [1, 3, F, H, W] or [1, 3, H, W] of the size that latents stand for."""
    wanted = tuple(latents.size.values())
    pixels = tuple(sample.shape[-2:])
    found = pixels if sample.dim() == 4 or latents.frames is None else (*pixels, sample.shape[2])
    if found != wanted:
        raise InputError(
            f"The VAE makes {_SIZE_WORDS[len(found)].format(*found)} of such latents, and the recipe says "
            f"{_SIZE_WORDS[len(wanted)].format(*wanted)} (vae_scale {latents.vae_scale}): correct the recipe, or leave "
            "vae out."
        )
