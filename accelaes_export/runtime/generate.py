"""From a bundle and a prompt to a picture: what `accelaes-export run` does."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.components import component_classes
from accelaes_export.contract.dtypes import dtype_argument
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.files.reading import require_plain_files
from accelaes_export.options import require_guidance, require_seed
from accelaes_export.policies.base import Policy
from accelaes_export.recipes import SHIPPED, shipped_folder
from accelaes_export.runtime.pipeline import accelerate
from accelaes_export.runtime.policy_choice import steps_alone
from accelaes_export.runtime.prompts import as_tokenised
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.text import cut_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image


@dataclass(frozen=True)
class GenerationResult:
    """A picture, or a video's frames, and how it came about.

    `cut` is the part of the prompt the text encoders had no room for, or ''.
    """

    frames: tuple[Image, ...]
    report: RunReport
    cut: str

    @property
    def image(self) -> Image:
        """The picture, or a video's first frame."""
        return self.frames[0]


def require_pipeline(bundle: Bundle, checkpoint: str | Path | None = None) -> None:
    """InputError where `load_pipeline` will find none. Loads nothing."""
    if checkpoint is not None or not bundle.manifest.complete:
        _location(bundle, checkpoint)


def _location(bundle: Bundle, checkpoint: str | Path | None) -> str | Path:
    """The folder or hub id of the checkpoint that a bundle's pipeline, or some of it, is in."""
    source = bundle.manifest.source
    if source.kind == "random" and checkpoint is None:
        raise InputError(
            f"Bundle {bundle.path} was built with random weights and has no pipeline to run in; build one from a "
            "checkpoint, or give a pipeline of the same architecture with --checkpoint."
        )
    location = str(checkpoint or source.location)
    folder: str | Path = shipped_folder(location) if location.startswith(SHIPPED) else location
    index = Path(folder) / "model_index.json"
    if Path(folder).is_dir() and not index.is_file():
        raise InputError(
            f"{folder} has no model_index.json, so it is no pipeline; give the pipeline's folder with --checkpoint."
        )
    if Path(folder).is_dir():
        require_plain_files(Path(folder))
    elif source.kind in ("folder", "shipped") and checkpoint is None:
        raise InputError(f"The bundle's checkpoint {folder} isn't there any more; say where it is with --checkpoint.")
    return folder


def load_pipeline(bundle: Bundle, checkpoint: str | Path | None = None) -> Any:
    """The bundle's diffusers pipeline, without the transformer that the bundle stands for.

    Out of the bundle where it has all of its components; otherwise those it has, and the others from the checkpoint.

    Args:
        checkpoint: all of it from there: a folder or hub id. Where the bundle lacks components, None means where the
            manifest says.

    Raises:
        BundleError: components that can't be opened.
        InputError: a bundle of random weights, or no pipeline there.
        MissingComponentError: a hub that can't be reached.
    """
    components = bundle.manifest.components
    if components is None or checkpoint is not None:
        return _from_checkpoint(bundle, checkpoint)
    from accelaes_export.runtime.components import assembled, components_of

    lacking = components.lacking()
    found = _from_checkpoint(bundle, None, lacking).components if lacking else {}
    found |= components_of(bundle)
    return assembled(bundle, components, found).to(bundle.session().device)


def _variant(folder: str | Path, built: str | None) -> str | None:
    """Of a checkpoint's weight files: the one the transformer was built of, where anything else of it has that."""
    if built is None or not Path(folder).is_dir():
        return built
    beside = [path for path in Path(folder).glob(f"*/*.{built}.*") if path.parent.name != "transformer"]
    return built if beside else None


def _from_checkpoint(bundle: Bundle, checkpoint: str | Path | None, wanted: Sequence[str] | None = None) -> Any:
    """The pipeline of a checkpoint without its transformer, and with nothing but `wanted` where that is said."""
    from diffusers import DiffusionPipeline

    from accelaes_export.runtime.components import dtype_around

    folder, source = _location(bundle, checkpoint), bundle.manifest.source
    dtype = dtype_around(bundle)
    try:
        # diffusers asks for every component by hand that a pipeline was saved without.
        saved, _ = DiffusionPipeline.load_config(folder, revision=source.revision, return_unused_kwargs=True)
        absent = {name: None for name, entry in saved.items() if entry == [None, None]}
        if wanted is not None:
            absent |= {name: None for name in component_classes(saved) if name not in (*wanted, "scheduler")}
        pipe = DiffusionPipeline.from_pretrained(
            folder,
            **{**absent, "transformer": None},
            **dtype_argument(dtype),
            use_safetensors=True,
            revision=source.revision,
            variant=_variant(folder, source.variant),
        )
    except OSError as error:
        raise MissingComponentError(
            f"The pipeline {str(folder)!r} can't be loaded: {str(error).splitlines()[0]} Give a local folder "
            "with --checkpoint."
        ) from error
    return pipe.to(bundle.session().device)


def generate(
    bundle: Bundle,
    prompt: str,
    *,
    policy: Policy | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    negative_prompt: str = "",
    pipe: Any = None,
    checkpoint: str | Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> GenerationResult:
    """Make one picture.

    Args:
        policy, guidance: the bundle's defaults if None.
        steps: the policy's own number if None, or else the bundle's default.
        seed: of the CPU generator the first noise is drawn from, so that it is the same on every device.
        pipe: a pipeline made by `load_pipeline`, to be used again; loaded if None.
        on_step: called after every step with its index and the number of steps.

    Raises:
        InputError: steps < 2, an empty prompt, and what `accelerate` and the policy's plan refuse.
    """
    manifest = bundle.manifest
    steps = steps_alone(policy, steps, manifest.defaults.steps)
    if steps < 2:
        raise InputError(f"{steps} denoising steps were asked for; allowed are 2 or more.")
    if not prompt.strip():
        raise InputError("The prompt is empty; say what the picture shows.")
    guidance = manifest.defaults.guidance if guidance is None else guidance
    require_guidance(guidance)
    require_seed(seed)
    pipe = load_pipeline(bundle, checkpoint) if pipe is None else pipe
    pipe.set_progress_bar_config(disable=True)
    accelerate(pipe, bundle, policy)

    def after_step(_: Any, i: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(i, steps)
        return kwargs

    arguments = call_arguments(
        pipe, manifest, prompt, steps=steps, guidance=guidance, seed=seed, negative_prompt=negative_prompt
    )
    taken = inspect.signature(type(pipe).__call__).parameters
    watching = {"callback_on_step_end": after_step, "callback": lambda i, *_: after_step(None, i, None, {})}
    output = pipe(**arguments, **{name: call for name, call in watching.items() if name in taken})
    frames = tuple(output.frames[0]) if hasattr(output, "frames") else (output.images[0],)
    return GenerationResult(frames, pipe.transformer.report(), _cut(bundle, pipe, prompt))


def call_arguments(
    pipe: Any, manifest: Manifest, prompt: str, *, steps: int, guidance: float, seed: int, negative_prompt: str = ""
) -> dict[str, Any]:
    """What a pipeline is called with for one picture of the bundle's size, as `generate` does."""
    import torch

    options = {
        "prompt": prompt,
        "class_labels": _label(pipe, prompt),
        # Without a negative prompt some pipelines don't guide at all.
        "negative_prompt": negative_prompt or (" " if manifest.call.guidance.argument == "true_cfg_scale" else None),
        "num_inference_steps": steps,
        manifest.call.guidance.argument: guidance,
        **manifest.geometry.latents.size,
        "use_resolution_binning": False,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "max_sequence_length": manifest.text[-1].length if len(manifest.text) else None,
        "output_type": "pil",
    }
    # Pipelines differ in what they take; None means what the pipeline does by itself.
    taken = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in options.items() if name in taken and value is not None}


def _label(pipe: Any, prompt: str) -> list[int] | None:
    """The class a class-conditional pipeline is asked for, by its number or its name; None for other pipelines."""
    if "class_labels" not in inspect.signature(type(pipe).__call__).parameters:
        return None
    labels: dict[str, int] = getattr(pipe, "labels", None) or {}
    wanted = prompt.strip()
    if wanted.isdigit() and (not labels or int(wanted) in labels.values()):
        return [int(wanted)]
    if wanted in labels:
        return [labels[wanted]]
    close = difflib.get_close_matches(wanted, labels, n=3)
    raise InputError(
        f"This model draws classes, and {wanted!r} is none of its {len(labels) or 'numbered'} ones; give a class's "
        f"number or name{', such as ' + ', '.join(close) if close else ''}."
    )


def _cut(bundle: Bundle, pipe: Any, prompt: str) -> str:
    """What every text encoder had to leave out: the shortest remainder."""
    (prompt,) = as_tokenised(pipe, [prompt], clean_caption=True)  # as calls are by default that can clean captions
    rests = [
        cut_words(prompt, tokenizer, segment)
        for segment in bundle.manifest.text
        for name in segment.tokenizers
        if (tokenizer := getattr(pipe, name, None)) is not None
    ]
    return min(rests, key=len, default="")
