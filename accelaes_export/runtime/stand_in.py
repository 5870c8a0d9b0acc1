"""What stands in a pipeline for its transformer, and before the methods that have to do with it."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from accelaes_export.backends.base import Session
from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.geometry import Geometry
from accelaes_export.errors import InputError, MissingConfigError
from accelaes_export.policies.base import Policy
from accelaes_export.runtime.arguments import IDS, is_of_size
from accelaes_export.runtime.callers import Caller, caller_of, unwrapped
from accelaes_export.runtime.denoiser import CONDITIONAL
from accelaes_export.runtime.prompts import rows_of
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.tracker import FOREIGN, RunTracker, Settings

_BOTH = "cond_uncond"


@dataclass(frozen=True)
class Served:
    """One size that a pipeline runs at: of which bundle, what to compute when, and a sentence on whose weights run."""

    bundle: Bundle
    geometry: Geometry
    session: Session
    policy: Policy
    weights: str


def stand_in(pipe: Any) -> AcceleratedTransformer | None:
    """What stands in a pipeline for its transformer, compiled or not; None where it has its own."""
    found = unwrapped(getattr(pipe, "transformer", None))
    return found if isinstance(found, AcceleratedTransformer) else None


class AcceleratedTransformer(torch.nn.Module):
    """Stands in a pipeline for its transformer: same call, same output, computed by a bundle's engine.

    Attributes:
        config: the transformer's diffusers config, as pipelines read it.
        original: what stood here before.
        served: the bundles it runs on.
    """

    def __init__(self, pipe: Any, served: Sequence[Served], settings: Settings, original: Any) -> None:
        super().__init__()
        first = served[0].bundle
        # Around Module.__setattr__: the original is no part of this module, and moves with nobody.
        object.__setattr__(self, "original", original)
        self.config = component_config(first.manifest.transformer_config, f"Bundle {first.path}")
        self.dtype = _dtype(pipe, original, first)
        for name, value in first.manifest.call.attributes.items():
            setattr(self, name, value)
        self.settings = settings
        self.served = tuple(served)
        self._pipe = weakref.ref(pipe)
        # Of every pipeline one for each bundle it has run on, and the one of its last call.
        self._trackers: weakref.WeakKeyDictionary[Any, dict[int, RunTracker]] = weakref.WeakKeyDictionary()
        self._latest_of: weakref.WeakKeyDictionary[Any, RunTracker] = weakref.WeakKeyDictionary()
        self._latest: RunTracker | None = None
        self._ids: tuple[torch.Tensor | None, int] = None, 0
        self._of_thread = threading.local()
        # Of no numbers: what asks a module where and in what it computes, or moves it, finds a parameter.
        self.stand_in = torch.nn.Parameter(torch.empty(0, dtype=self.dtype, device=self.device), requires_grad=False)
        self._made_as = self.stand_in.device, self.stand_in.dtype

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            adapters = any(word in name for word in ("lora", "adapter", "peft", "encoder_hid"))
            reason = " (LoRA weights and IP-adapters can't be added to an engine)" if adapters else ""
            raise AttributeError(
                f"A bundle stands for this pipeline's transformer and has no {name}{reason}; ax.restore(pipe) for what "
                "needs it."
            ) from None

    def moved_original(self) -> Any:
        """What stood here before, moved and cast as this was since."""
        (device, dtype), now = self._made_as, self.stand_in
        if self.original is not None:
            changes: dict[str, Any] = {} if now.device == device else {"device": now.device}
            changes |= {} if now.dtype == dtype else {"dtype": now.dtype}
            if changes:
                self.original.to(**changes)
        return self.original

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InputError(
            "A transformer that a bundle stands for can't be copied or pickled; copy or pickle the pipeline after "
            "ax.restore(pipe), and open the bundle where it is used."
        )

    @property
    def device(self) -> torch.device:
        return self.served[0].session.device

    def report(self, pipe: Any = None) -> RunReport:
        """The last run, or the current one so far; of `pipe` where several share the engine."""
        tracker = self._latest if pipe is None else self._latest_of.get(pipe)
        if tracker is None:
            raise InputError("No run was started yet, so there is nothing to report.")
        return tracker.report()

    def watching(self, encode: Callable[..., Any]) -> Watched:
        """`encode_prompt` of the pipeline, whose prompts are remembered with what was made of them."""
        return Watched(encode, self.settings, self._pipe)

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """What pipelines wrap the calls of a step in: "cond" and "uncond", or "cond_uncond" where one call is both."""
        self._of_thread.branch = CONDITIONAL if name == _BOTH else name
        try:
            yield
        finally:
            self._of_thread.branch = CONDITIONAL

    @torch.compiler.disable  # it is compiled already, and asks who calls
    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """One step, with the arguments of the transformer this replaces.

        Raises:
            InputError: arguments the engine can't serve, or a call from outside the accelerated pipeline.
        """
        caller = caller_of(self) or Caller(self._pipe())
        if caller.pipe is None or stand_in(caller.pipe) is not self:
            raise InputError(FOREIGN)
        tracker = self._tracker(caller.pipe, hidden_states, kwargs)
        self._latest = self._latest_of[caller.pipe] = tracker
        branch = getattr(self._of_thread, "branch", CONDITIONAL)
        output = tracker.step(caller, branch, hidden_states, args, kwargs)
        if not return_dict:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)

    def _tracker(self, pipe: Any, hidden_states: torch.Tensor, kwargs: Mapping[str, Any]) -> RunTracker:
        """The one that follows `pipe` on the bundle of this picture's size."""
        trackers = self._trackers.setdefault(pipe, {})
        k = 0 if len(self.served) == 1 else self._fitting(hidden_states, kwargs)
        if k not in trackers:
            one = self.served[k]
            manifest, geometry = one.bundle.manifest, one.geometry
            trackers[k] = RunTracker(manifest, geometry, one.session, self.settings, one.policy, one.weights)
        return trackers[k]

    def _fitting(self, hidden_states: torch.Tensor, kwargs: Mapping[str, Any]) -> int:
        """Which bundle is of the size of a call's pictures; InputError where none is."""
        ids = kwargs.get(IDS)
        if ids is not None and ids is self._ids[0]:  # at every step of a run: the device is asked once
            return self._ids[1]
        for k, one in enumerate(self.served):
            if is_of_size(one.geometry, hidden_states, kwargs):
                self._ids = ids, k
                return k
        sizes = "; ".join(one.geometry.latents.asked_for for one in self.served)
        raise InputError(
            f"Latents of shape {tuple(hidden_states.shape[1:])} were given, and there are bundles for {sizes}: call "
            "the pipeline with one of these sizes, or build a bundle for this one."
        )


def _dtype(pipe: Any, original: Any, bundle: Bundle) -> torch.dtype:
    """What pipelines compute around the engine in: as with the transformer that stood here, or as they decode.

    Engines take their inputs in any type, and a float16 engine serves a pipeline in float32.
    """
    for component in (original, getattr(pipe, "vae", None)):
        dtype = getattr(component, "dtype", None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
    return torch_dtype(bundle.manifest.geometry.contract.dtype)


def component_config(config: Mapping[str, Any], whose: str) -> Any:
    """A model's config as a diffusers pipeline reads it; `whose` begins the sentence on what it lacks."""
    from diffusers.configuration_utils import FrozenDict

    class Config(FrozenDict):
        def __getattr__(self, name: str) -> NoReturn:
            raise MissingConfigError(
                f"{whose} doesn't say what {name} it has, which this pipeline reads; build the bundle again with this "
                "release of diffusers."
            )

    return Config(config)


class Watched:
    """A pipeline's `encode_prompt` that remembers which prompts it encoded."""

    covered: Any = None
    """What somebody put there before."""

    def __init__(self, encode: Callable[..., Any], settings: Settings, pipe: weakref.ref[Any]) -> None:
        self._encode, self._settings, self._pipe = encode, settings, pipe
        self._signature = inspect.signature(encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        embedded = self._encode(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments |= arguments.pop("kwargs", {})
        rows = () if arguments.get("prompt_embeds") is not None else rows_of(arguments, self._pipe())
        if rows:
            self._settings.encoded.remember(embedded[0], rows)
        self._settings.guided = bool(arguments.get("do_classifier_free_guidance"))
        return embedded


class Saving:
    """A pipeline's `save_pretrained` that saves its own transformer, and not a folder without one."""

    covered: Any = None

    def __init__(self, pipe: weakref.ref[Any]) -> None:
        self._pipe = pipe

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self._pipe()
        accelerated = None if pipe is None else stand_in(pipe)
        if pipe is None or accelerated is None or accelerated.original is None:
            raise InputError(
                "This pipeline was loaded without a transformer and runs on a bundle, so there is no whole pipeline to "
                "save; copy the checkpoint it was loaded from."
            )
        placed = pipe.transformer
        pipe.transformer = accelerated.original
        try:
            save = self.covered or type(pipe).save_pretrained.__get__(pipe)
            return save(*args, **kwargs)
        finally:
            pipe.transformer = placed
