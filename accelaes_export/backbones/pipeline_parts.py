"""What a checkpoint has beside its transformer: tokenizers, text encoders, a VAE and a scheduler's config."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.checkpoints import Checkpoint
from accelaes_export.backbones.weight_files import DIFFUSERS, TRANSFORMERS, component_files, stored_tensors
from accelaes_export.backbones.weights import Read, filled, stored_weights
from accelaes_export.contract.components import HIDDEN, ComponentName, component_classes
from accelaes_export.contract.dtypes import dtype_argument, torch_dtype
from accelaes_export.errors import BuildError, InputError, first_line
from accelaes_export.files.hashing import sha256_of
from accelaes_export.files.reading import parse_json, read_given

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
VAE = "vae"
# diffusers' classes, and what pipelines read of them beside their config: plain attributes, and buffers.
VAE_CLASSES: Mapping[str, tuple[str, ...]] = {
    "AutoencoderKL": (),
    "AutoencoderKLQwenImage": ("temperal_downsample",),
    "AutoencoderKLWan": (),
    "AutoencoderKLLTXVideo": ("spatial_compression_ratio", "temporal_compression_ratio", "latents_mean", "latents_std"),
}
# transformers' classes, and what pipelines read of their outputs; `output[0]` first.
ENCODER_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output", f"{HIDDEN}-2"),
    "CLIPTextModelWithProjection": ("text_embeds", "last_hidden_state", f"{HIDDEN}-2"),
    "T5EncoderModel": ("last_hidden_state",),
    "UMT5EncoderModel": ("last_hidden_state",),
    "GemmaModel": ("last_hidden_state", f"{HIDDEN}-2"),
    "Gemma2Model": ("last_hidden_state", f"{HIDDEN}-2"),
    "Qwen2_5_VLForConditionalGeneration": (f"{HIDDEN}-1",),
}
# Others leave float16's range inside, trained as they were in bfloat16.
HALF_PRECISION = ("CLIPTextModel", "CLIPTextModelWithProjection")
_TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Part:
    """A text encoder or VAE on disk.

    Attributes:
        name: the pipeline's attribute.
        kind: the class, of transformers or diffusers.
        files: safetensors.
        variant: of the files, such as fp16; "" for the plain ones.
    """

    name: str
    kind: str
    folder: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    variant: str = ""

    @cached_property
    def weights_sha256(self) -> str:
        """Over config and files."""
        kept = {name: value for name, value in self.config.items() if not name.startswith("_")}
        digest = hashlib.sha256(json.dumps([self.kind, kept], sort_keys=True).encode())
        for file in self.files:
            digest.update(f"{file.name}:{sha256_of(file)}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def numbers(self) -> int:
        """How many numbers its files have."""
        return sum(math.prod(shape) for shape, _ in stored_tensors(self.files).values())

    def load(self, dtype: str) -> torch.nn.Module:
        """The model as its own library loads it, in eval mode, on the CPU, in `dtype`.

        Raises:
            BuildError: it can't be loaded.
        """
        import diffusers
        import transformers

        library: Any = diffusers if self.name == VAE else transformers
        options: dict[str, Any] = {"use_safetensors": True, "variant": self.variant or None}
        options |= dtype_argument(dtype) if self.name == VAE else {"dtype": torch_dtype(dtype)}
        try:
            with _without_bars():
                model = getattr(library, self.kind).from_pretrained(self.folder, **options)
        except Exception as error:  # whatever a model class makes of values nobody foresaw
            raise BuildError(f"{self.folder} could not be loaded: {first_line(error)}") from error
        # Not the class's own `to`, which warns of modules it would like to keep in fp32.
        settled = _module_class().to(model, torch_dtype(dtype)).eval().requires_grad_(False)
        assert isinstance(settled, _module_class())
        return settled

    def hollow(self, read: Read, dtype: str) -> torch.nn.Module:
        """A text encoder whose large matrices are left out; `read` has them (see weights.filled).

        Raises:
            InputError: files that lack a parameter or have it in another shape.
        """
        model = self._empty()
        self._check_tensors(model)
        settled = filled(model, read, dtype)
        assert isinstance(settled, _module_class())
        return settled.requires_grad_(False)

    def check(self) -> None:
        """InputError for a config no model can be made from, or a text encoder's files that don't belong to it."""
        model = self._empty()
        if self.name != VAE:  # whose files may have names of older releases, which diffusers knows
            self._check_tensors(model)

    def _empty(self) -> Any:
        """The model without its weights."""
        import diffusers
        import transformers
        from accelerate import init_empty_weights

        library: Any = diffusers if self.name == VAE else transformers
        kind = getattr(library, self.kind)
        try:
            with init_empty_weights(include_buffers=False):
                if self.name == VAE:
                    return kind.from_config(dict(self.config))
                return kind(kind.config_class.from_dict(dict(self.config)))
        except Exception as error:  # whatever a model class makes of values nobody foresaw
            raise InputError(
                f"{self.folder / 'config.json'} is no config {self.kind} can be made from: {first_line(error)}"
            ) from error

    def read_weights(self, dtype: str) -> Read:
        """A text encoder's weights by its parameters' names, one at a time, in `dtype`.

        Files name parameters as the class did that saved them: with a prefix that others leave out, and an embedding
        that two modules share under the name of either.
        """
        stored, names = stored_weights(self.files, dtype), set(stored_tensors(self.files))

        def read(name: str) -> torch.Tensor | None:
            found = _stored_name(name, names)
            return None if found is None else stored(found)

        return read

    def _check_tensors(self, model: Any) -> None:
        stored = stored_tensors(self.files)
        names = set(stored)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            found = _stored_name(name, names)
            if found is None or stored[found][0] != list(parameter.shape):
                has = "lacks" if found is None else "has in another shape"
                raise InputError(
                    f"{self.folder} {has} {name}, which its config.json asks for; its weights and config.json don't "
                    "belong together."
                )


@dataclass(frozen=True)
class PipelineParts:
    """What was asked for of a pipeline.

    Attributes:
        index: its model_index.json.
        scheduler: its config.
        encoders, tokenizers: by the pipeline's attribute, with files of tokenizers.
        vae: None where it wasn't asked for.
    """

    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    encoders: Mapping[str, Part]
    vae: Part | None
    tokenizers: Mapping[str, tuple[Path, ...]]

    @classmethod
    def of(cls, checkpoint: Checkpoint, wanted: Collection[ComponentName]) -> PipelineParts:
        """The parts `wanted` around a checkpoint's transformer.

        Raises:
            InputError: a transformer by itself, a pipeline that can't be read, or a component of a class that can't be
                part of a bundle.
        """
        folder, variant = checkpoint.folder.parent, checkpoint.source.variant
        if not (folder / INDEX).is_file() or checkpoint.folder.name != "transformer":
            raise InputError(
                f"{checkpoint.folder} is a transformer by itself, and components come from a whole pipeline: give the "
                f"folder that has its {INDEX}, or leave --components out."
            )
        index = _json(folder / INDEX)
        classes = {name: kind for name, (_, kind) in component_classes(index).items()}

        def named(beginning: str) -> list[str]:
            return [name for name in classes if name.startswith(beginning)]

        encoders = named("text_encoder") if "text" in wanted else []
        tokenizers = named("tokenizer") if "tokenizers" in wanted else []
        return cls(
            index,
            _scheduler_config(folder / "scheduler" / "scheduler_config.json", classes.get("scheduler", "")),
            {name: _part(folder, name, classes[name], ENCODER_OUTPUTS, TRANSFORMERS, variant) for name in encoders},
            _part(folder, VAE, classes.get(VAE, ""), VAE_CLASSES, DIFFUSERS, variant) if "vae" in wanted else None,
            {name: _tokenizer_files(folder / name) for name in tokenizers},
        )

    @property
    def classes(self) -> dict[str, str]:
        """Class by attribute, of all components it was saved with."""
        return {name: kind for name, (_, kind) in component_classes(dict(self.index)).items()}

    @property
    def described(self) -> tuple[Part, ...]:
        """The parts that have weights."""
        return (*self.encoders.values(), *([] if self.vae is None else [self.vae]))


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    found = tuple(
        path
        for path in sorted(folder.glob("*"))
        if path.is_file() and path.suffix in _TOKENIZER_FILES and not path.name.startswith(".")
    )
    if not found:
        raise InputError(f"{folder} has no tokenizer's files; download the checkpoint again.")
    return found


def _part(root: Path, name: str, kind: str, known: Collection[str], stem: str, variant: str | None) -> Part:
    if kind not in known:
        what = f"is a {kind}" if kind else "is none"
        raise InputError(
            f"The {name} of {root} {what}, and those that can be part of a bundle are {', '.join(known)}: leave it out "
            "of --components; run then reads it from the checkpoint."
        )
    folder = root / name
    taken, files = component_files(folder, stem, variant)
    part = Part(name, kind, folder, _json(folder / "config.json"), files, taken)
    part.check()
    if part.config.get("timestep_conditioning"):
        raise InputError(
            f"The {name} of {root} takes a timestep (timestep_conditioning), and a bundle's takes latents alone: leave "
            f"{name} out of --components; run then reads it from the checkpoint."
        )
    return part


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar of its own while it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def tokenizer_of(encoder: str) -> str:
    """The pipeline's attribute an encoder's ids come from: diffusers numbers both alike."""
    return encoder.replace("text_encoder", "tokenizer")


def _stored_name(name: str, stored: set[str]) -> str | None:
    """What the files call a parameter; None where they don't have it."""
    if name.endswith("embed_tokens.weight") and name not in stored and "shared.weight" in stored:
        return "shared.weight"
    if name in ("shared.weight", "lm_head.weight") and name not in stored:
        return next((other for other in sorted(stored) if other.endswith("embed_tokens.weight")), None)
    if name in stored:
        return name
    # Of models that see too: transformers writes them as it once named them.
    bare = name.replace(".language_model.", ".")
    if bare in stored:
        return bare
    longer = [other for other in stored if other.endswith(f".{name}")]
    shorter = [other for other in stored if name.endswith(f".{other}")]
    return next(iter([*longer, *shorter]), None) if len(longer) + len(shorter) == 1 else None


def _scheduler_config(path: Path, kind: str) -> dict[str, Any]:
    """A scheduler's config. JSON has no infinity, which diffusers writes: such a value is left out where the class has
    it by itself, and InputError otherwise."""
    import inspect

    import diffusers

    if not hasattr(diffusers, kind):
        raise InputError(f"{path.parent} is a {kind or 'nothing'}, and this release of diffusers has none.")
    found = _json(path, json.loads)
    own = inspect.signature(getattr(diffusers, kind).__init__).parameters
    for name, value in list(found.items()):
        if isinstance(value, float) and not math.isfinite(value):
            if name not in own or own[name].default != value:
                raise InputError(f"{path} has {name} = {value}, which is no number; correct it.")
            del found[name]
    return dict(parse_json(json.dumps(found).encode()))


def _json(path: Path, parse: Callable[[bytes], Any] = parse_json) -> dict[str, Any]:
    try:
        found = parse(read_given(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; download the checkpoint again.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no fields; download the checkpoint again.")
    return found


def _module_class() -> type[torch.nn.Module]:
    import torch

    return torch.nn.Module
