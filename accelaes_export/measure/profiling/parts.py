"""The parts of a pipeline beside its transformer: text encoders and VAE, timed in the pipeline's own calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.measure.profiling.report import Part
from accelaes_export.measure.profiling.timing import Stopwatch, spread
from accelaes_export.policies import Dense
from accelaes_export.runtime.generate import generate, load_pipeline, require_pipeline

PROMPT = "a photograph of a lighthouse at dawn"
_STEPS = 2  # the fewest a run can have: only what lies around them is looked at
_VAE = "vae"


def profile_parts(
    bundle: Bundle,
    watch: Stopwatch,
    checkpoint: str | Path | None,
    *,
    rounds: int,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[tuple[Part, ...], str]:
    """Text encoders (both prompts where there are two) and the VAE's decoder for one picture; or nothing, and why.

    Raises:
        InputError: a `checkpoint` that was named and is no pipeline.
    """
    try:
        require_pipeline(bundle, checkpoint)
        pipe = load_pipeline(bundle, checkpoint)
    except (InputError, MissingComponentError) as error:
        if checkpoint is not None:
            raise
        return (), str(error)
    prompt = PROMPT if bundle.manifest.text else "0"
    pictures: list[dict[str, list[tuple[Any, Any]]]] = []  # of every picture: part to its calls' marks
    with _Watched(pipe, watch, pictures):
        for k in range(rounds + 1):
            if progress is not None:
                progress(k / (rounds + 1), f"picture {k + 1}")
            pictures.append({})
            generate(bundle, prompt, policy=Dense(), steps=_STEPS, pipe=pipe)
    watch.wait()
    return tuple(_part(name, pictures, watch) for name in pictures[0]), ""


def _part(name: str, pictures: list[dict[str, list[tuple[Any, Any]]]], watch: Stopwatch) -> Part:
    seconds = [sum(watch.seconds(start, end) for start, end in picture[name]) for picture in pictures]
    return Part(name=name, calls=len(pictures[0][name]), first_seconds=seconds[0], seconds=spread(seconds[1:]))


class _Watched:
    """Marks every call of a pipeline's text encoders and of its VAE's decoder, in the last of `pictures`."""

    def __init__(self, pipe: Any, watch: Stopwatch, pictures: list[dict[str, list[tuple[Any, Any]]]]) -> None:
        self._pipe, self._watch, self._pictures = pipe, watch, pictures
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        import torch

        for name, module in self._pipe.components.items():
            if name.startswith("text_encoder") and isinstance(module, torch.nn.Module):
                self._watch_calls(name, module)
        self._decode = self._pipe.vae.decode
        self._pipe.vae.decode = self._watched_decode

    def _watch_calls(self, name: str, module: Any) -> None:
        begun: list[Any] = []

        def before(*_: Any) -> None:
            begun.append(self._watch.mark())

        def after(*_: Any) -> None:
            self._keep(name, begun.pop())

        self._hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _watched_decode(self, *args: Any, **kwargs: Any) -> Any:
        start = self._watch.mark()
        decoded = self._decode(*args, **kwargs)
        self._keep(_VAE, start)
        return decoded

    def _keep(self, name: str, start: Any) -> None:
        self._pictures[-1].setdefault(name, []).append((start, self._watch.mark()))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        del self._pipe.vae.decode  # uncovers the class's own
