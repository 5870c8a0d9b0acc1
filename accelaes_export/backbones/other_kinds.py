"""Checkpoints of other kinds than a diffusers folder of plain weights: recognised, and named with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelaes_export.errors import InputError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ADAPTER = re.compile(r"\.?(lora_[A-Za-z]+|hada_w\d_[ab]|lokr_w\d|base_layer|dora_scale)(\.|$)")
_QUANTISED = re.compile(
    r"\.(absmax|quant_map|quant_state\.\w+|SCB|weight_scale(_inv)?|scale_weight|qweight|_scale|weight\._data)$"
)
_WHOLE = "model.diffusion_model."
_LAYOUTS = {
    "double_blocks.": "Black Forest Labs'",
    "joint_blocks.": "Stability AI's",
    "diffusion_model.": "ComfyUI's",
    _WHOLE: "Stability AI's",
}
_PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL")
_MOST_BLOCKS, _LARGEST = 1000, 2**24  # of a config's numbers: what is beyond is damage, and would never end
_CONVERT = (
    "load it once with diffusers (StableDiffusion3Pipeline.from_single_file, or the class of your model) and "
    "save_pretrained(FOLDER), then give FOLDER"
)


def refuse_file(path: Path) -> None:
    """InputError where a file was given in place of a folder, with what it is."""
    if path.is_dir():
        return
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; give a folder in diffusers format.")
    if suffix == ".gguf":
        raise InputError(
            f"{path} is a GGUF file, whose weights are quantised; build from the original weights, in a folder in "
            "diffusers format."
        )
    if suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which may hold code and is never opened here; convert it to safetensors in a folder "
            "in diffusers format."
        )
    if suffix != ".safetensors":
        raise InputError(f"{path} is a file; give a folder in diffusers format, a hub id or shipped:shapes.")
    names = _names(path)
    _refuse_adapters(names, path)
    layout = next((maker for prefix, maker in _LAYOUTS.items() if any(name.startswith(prefix) for name in names)), "a")
    raise InputError(f"{path} is one file in {layout} layout, not a folder in diffusers format; {_CONVERT}.")


def refuse_folder(folder: Path) -> None:
    """InputError where a folder without a config holds a checkpoint of another kind, with what it is."""
    if (folder / "config.json").exists() or not folder.is_dir():
        return
    files = sorted(path for path in folder.iterdir() if path.is_file())
    adapters = [path for path in files if path.name.startswith(("adapter_", "pytorch_lora_weights"))]
    if adapters:
        raise InputError(
            f"{folder} holds {adapters[0].name}: a LoRA, not a model; fuse it into one (pipe.load_lora_weights, "
            "pipe.fuse_lora, pipe.unload_lora_weights), save_pretrained that, and give its folder."
        )
    for path in files:
        if path.suffix.lower() in (".safetensors", ".gguf", *_PICKLES):
            refuse_file(path)


def refuse_config(path: Path, config: Mapping[str, Any]) -> None:
    """InputError for the config of quantised weights, of a model with code of its own, or with absurd numbers."""
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        raise InputError(
            f"{path} describes weights quantised by {method}, which an engine isn't built from; give the original "
            "weights, and choose the engine's --dtype."
        )
    if config.get("auto_map"):
        raise InputError(
            f"{path} names Python code of the checkpoint's own (auto_map), which is never run here; give a checkpoint "
            "of a class that diffusers has."
        )
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = _MOST_BLOCKS if "layers" in name or "blocks" in name else _LARGEST
        if any(isinstance(number, int) and not isinstance(number, bool) and number > most for number in numbers):
            raise InputError(f"{path} has {name} = {str(value)[:40]}, which no model has; download it again.")


def refuse_tensors(tensors: Mapping[str, str], folder: Path) -> None:
    """InputError for adapters that weren't merged, and for quantised weights.

    Args:
        tensors: name to safetensors' type.
    """
    _refuse_adapters(tensors, folder)
    scales = [name for name in tensors if _QUANTISED.search(name)]
    packed = [name for name, kind in tensors.items() if kind not in _PLAIN]
    if scales or packed:
        name = (packed or scales)[0]
        raise InputError(
            f"{folder} has quantised weights ({name} is {tensors[name]}), which an engine isn't built from; give the "
            "original weights, and choose the engine's --dtype."
        )


def _refuse_adapters(names: Iterable[str], where: Path) -> None:
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise InputError(
            f"{where} has LoRA weights that weren't merged ({adapters[0]}); load it with diffusers, pipe.fuse_lora(), "
            "pipe.unload_lora_weights(), save_pretrained(FOLDER), and give FOLDER."
        )


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}; download or copy it again.") from error
