"""Checkpoints in diffusers format: find the transformer, check it before reading it, load it. safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.base import Backbone
from accelaes_export.backbones.other_kinds import refuse_config, refuse_file, refuse_folder, refuse_tensors
from accelaes_export.backbones.weight_files import DIFFUSERS, stored_tensors, weight_files
from accelaes_export.backbones.weights import hollow_transformer, random_weights
from accelaes_export.contract.dtypes import dtype_argument, torch_dtype
from accelaes_export.contract.manifest import Source
from accelaes_export.errors import BuildError, InputError, MissingComponentError
from accelaes_export.files.hashing import sha256_of
from accelaes_export.files.reading import parse_json, read_given
from accelaes_export.recipes import SHIPPED, shipped_folder

if TYPE_CHECKING:
    import torch

# Published before these had classes of their own, as a Transformer2DModel with such a norm.
_SPLIT_BY_NORM = {"ada_norm_single": "PixArtTransformer2DModel", "ada_norm_zero": "DiTTransformer2DModel"}
_TRANSFORMER = ("transformer/*.json", "transformer/*.safetensors")
_AROUND_IT = (
    "model_index.json",
    "scheduler/*.json",
    *(f"tokenizer*/*.{kind}" for kind in ("json", "txt", "model", "jinja")),
    *(f"text_encoder*/{name}" for name in ("*.json", "model.safetensors", "model-*-of-*.safetensors")),
    *(f"vae/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")),
)
_SHOWN = 3  # tensor names an error message lists


@dataclass(frozen=True)
class Checkpoint:
    """A transformer on disk: its folder, config, and the safetensors files of one variant.

    `beside` are the other variants in the folder, "" for the plain one; they aren't read. `unknown` are fields of the
    written config that the model's class doesn't know, and diffusers ignores.
    """

    source: Source
    folder: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    beside: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def resolve(
    location: str | Path,
    backbone: Backbone,
    *,
    revision: str | None = None,
    variant: str | None = None,
    whole: bool = False,
) -> Checkpoint:
    """Find the transformer of a diffusers checkpoint and check that `backbone` can take it.

    Args:
        location: a folder (the pipeline's, or its transformer's), a hub id, which may end with ``@revision``, or
            ``shipped:NAME``.
        variant: of the weight files, such as fp16. None: the plain ones, as diffusers takes them, or the only variant
            there is.
        whole: of a hub id, bring the rest of the pipeline too.

    Raises:
        InputError: nothing there, another architecture, no safetensors, or tensors missing, extra or misshapen.
        MissingComponentError: a hub id that can't be downloaded now.
    """
    name = str(location)
    hub_id, _, asked = name.partition("@")
    if name.startswith(SHIPPED):
        kind, root = "shipped", shipped_folder(name)
    elif Path(name).exists():
        kind, root = "folder", Path(name)
    elif hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~")):
        name = hub_id
        kind, root = "hub", _download(hub_id, asked or revision, whole=whole)
        # What a branch or tag was then; the files lie in a folder of the commit's name.
        revision = root.name if root.parent.name == "snapshots" else asked or revision
    else:
        raise InputError(
            f"Checkpoint {name!r} was not found; give a folder in diffusers format, a hub id such as "
            "stabilityai/stable-diffusion-3-medium-diffusers, or shipped:shapes."
        )
    refuse_file(root)
    folder = root / "transformer" if (root / "transformer").is_dir() else root
    refuse_folder(folder)
    config, unknown = _read_config(folder, backbone)
    taken, files, beside = weight_files(folder, DIFFUSERS, variant)
    _check_tensors(backbone, config, files, folder)
    source = Source(
        kind=kind,
        location=name if kind != "folder" else str(root.resolve()),
        revision=revision,
        variant=taken or None,
        weights_sha256=_weights_hash(config, files),
    )
    return Checkpoint(source, folder, config, files, beside, unknown)


def load_transformer(checkpoint: Checkpoint, backbone: Backbone, dtype: str) -> torch.nn.Module:
    """The diffusers model in eval mode, on the CPU, in `dtype`.

    Raises:
        BuildError: out of memory, or a file that can't be read after all.
    """
    variant = checkpoint.source.variant
    try:
        model = _model_class(backbone).from_pretrained(
            checkpoint.folder, **dtype_argument(dtype), use_safetensors=True, variant=variant
        )
    except MemoryError as error:
        raise BuildError(f"Loading {checkpoint.folder} ran out of memory.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{checkpoint.folder} could not be loaded: {str(error).splitlines()[0]}") from error
    return _settled(model, dtype)


def random_source(backbone: Backbone, config: Mapping[str, Any], seed: int) -> Source:
    """The source of `random_transformer`'s weights: config and seed say all there is to know."""
    described = json.dumps([backbone.class_name, _architecture(config), seed], sort_keys=True)
    return Source(
        kind="random", location="random", seed=seed, weights_sha256=hashlib.sha256(described.encode()).hexdigest()
    )


def random_transformer(backbone: Backbone, config: Mapping[str, Any], dtype: str, seed: int) -> torch.nn.Module:
    """The published architecture with random weights, the same for the same seed; in eval mode, on the CPU."""
    read = random_weights(parameter_shapes(backbone, config), dtype, seed)
    return _settled(hollow_transformer(backbone, config, read, dtype, large=2**62), dtype)


def parameter_shapes(backbone: Backbone, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape, in the model's order."""
    return {name: tuple(p.shape) for name, p in empty_transformer(backbone, config).named_parameters()}


def empty_transformer(backbone: Backbone, config: Mapping[str, Any], dtype: str = "fp32") -> torch.nn.Module:
    """The model on the meta device: shapes without memory, for counting and checking."""
    import torch

    with torch.device("meta"):
        model = _model_class(backbone).from_config(dict(config))
    return _settled(model, dtype)


def parameter_bytes(backbone: Backbone, config: Mapping[str, Any], dtype: str) -> int:
    """Bytes of all weights in `dtype`."""
    model = empty_transformer(backbone, config)
    return sum(p.numel() for p in model.parameters()) * (4 if dtype == "fp32" else 2)


def _model_class(backbone: Backbone) -> Any:
    import diffusers

    return getattr(diffusers, backbone.class_name)


def _settled(model: Any, dtype: str) -> torch.nn.Module:
    """The model ready to be traced: one dtype throughout, as a graph has one for all activations."""
    import torch

    # Not the class's own `to`, which warns of modules a model class would like to keep in fp32.
    settled = torch.nn.Module.to(model, torch_dtype(dtype)).eval().requires_grad_(False)
    assert isinstance(settled, torch.nn.Module)
    return settled


def _download(hub_id: str, revision: str | None, *, whole: bool) -> Path:
    """The folder of a hub repository, with its transformer or all of it; downloaded or from the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=[*_TRANSFORMER, *(_AROUND_IT if whole else ())])
        )
    except HFValidationError as error:
        raise InputError(
            f"Checkpoint {hub_id!r} is no folder here and no hub id either; give a folder in diffusers format, or an "
            "id such as stabilityai/stable-diffusion-3-medium-diffusers."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"The hub's repository {hub_id!r} has no revision {revision!r}; give a branch, a tag or a commit after the "
            "@, or none."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"The hub has no repository {hub_id!r} that you may read; check the id, or log in (hf auth login) where it "
            "is gated."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingComponentError(
            f"Checkpoint {hub_id!r} is neither a local folder nor in the local hub cache, and the hub can't be "
            "reached; download it where there is a network and give its folder, or build with --random-weights."
        ) from error


def _read_config(folder: Path, backbone: Backbone) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The transformer's config with every default of its class filled in, and the fields the class doesn't know.

    InputError for another architecture.
    """
    path = folder / "config.json"
    try:
        written = parse_json(read_given(path))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no config.json; give a folder in diffusers format (with transformer/config.json in it)."
        ) from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(written, dict):
        raise InputError(f"{path} is no config: it holds no fields; download the checkpoint again.")
    refuse_config(path, written)
    given = written.get("_class_name")
    if given == "Transformer2DModel":
        given = _SPLIT_BY_NORM.get(str(written.get("norm_type")), given)
    if given != backbone.class_name:
        raise InputError(
            f"{path} describes a {given or 'model without _class_name'}, and the family {backbone.family} is built "
            f"from {backbone.class_name}; choose the --model of this architecture (accelaes-export models lists them)."
        )
    config = _architecture_config(backbone, written)
    legacy = written.get("_class_name") != backbone.class_name  # that class had more fields, for more architectures
    unknown = () if legacy else tuple(name for name in written if name not in config and not name.startswith("_"))
    return config, unknown


def _architecture_config(backbone: Backbone, written: Mapping[str, Any]) -> dict[str, Any]:
    """What the model class makes of a written config: known fields alone, defaults filled in."""
    import inspect

    parameters = inspect.signature(_model_class(backbone).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    config = {name: written.get(name, default) for name, default in defaults.items()}
    return {
        "_class_name": backbone.class_name,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
    }


def complete_config(backbone: Backbone, written: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's published config with the class's defaults filled in; InputError for fields the class doesn't have."""
    complete = _architecture_config(backbone, written)
    unknown = sorted(name for name in written if name not in complete and not name.startswith("_"))
    if unknown:
        raise InputError(f"The config has {', '.join(unknown)}, which {backbone.class_name} doesn't know.")
    return complete


def _check_tensors(backbone: Backbone, config: Mapping[str, Any], files: tuple[Path, ...], folder: Path) -> None:
    """Compare every tensor's name and shape in the files' headers with the model's, before anything is read."""
    stored = stored_tensors(files)
    found = {name: shape for name, (shape, _) in stored.items()}
    refuse_tensors({name: element for name, (_, element) in stored.items()}, folder)
    try:
        wanted = {name: list(t.shape) for name, t in empty_transformer(backbone, config).state_dict().items()}
    except Exception as error:  # whatever a model class makes of values nobody foresaw
        raise InputError(
            f"{folder / 'config.json'} is no config {backbone.class_name} can be made from: {error}"
        ) from error
    complaints = [
        ("lacks", [name for name in wanted if name not in found]),
        ("has, beyond what the config asks for,", [name for name in found if name not in wanted]),
        (
            "has in another shape",
            [f"{n} ({found[n]}, not {wanted[n]})" for n in wanted if n in found and found[n] != wanted[n]],
        ),
    ]
    for what, names in complaints:
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise InputError(
                f"{folder} {what} {', '.join(names[:_SHOWN])}{more}; its weights and config.json don't belong together."
            )


def _weights_hash(config: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(json.dumps(_architecture(config), sort_keys=True).encode())
    for file in files:
        digest.update(f"{file.name}:{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without diffusers' bookkeeping."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
