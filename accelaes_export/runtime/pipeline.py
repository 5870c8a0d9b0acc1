"""The drop-in: a diffusers pipeline whose transformer is a bundle. `accelerate` swaps it in, `restore` takes it out.

The pipeline is used as before. When it calls the transformer, who calls, for which prompt and whether for guidance is
read from the call itself, so copies of the pipeline may share the engine; the scheduler says which step of how many
this is. All of it is on the host, so the device isn't waited for.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from accelaes_export.bundle import Bundle
from accelaes_export.dtypes import torch_dtype
from accelaes_export.errors import InputError, MissingConfigError
from accelaes_export.policies.base import Policy
from accelaes_export.runtime.callers import Caller, caller_of, unwrapped
from accelaes_export.runtime.denoiser import CONDITIONAL
from accelaes_export.runtime.policy_choice import policy_for
from accelaes_export.runtime.prompts import rows_of, told
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.tracker import FOREIGN, RunTracker, Settings
from accelaes_export.runtime.weights import WeightComparison, which_weights

_NOT_ARCHITECTURE = frozenset({"sample_size"})


def accelerate(
    pipe: Any,
    bundle: Bundle,
    policy: Policy | str | None = None,
    *,
    words: str | Sequence[str] = (),
    weights: WeightComparison = "sample",
    strict: bool = False,
    **options: Any,
) -> Any:
    """Give a diffusers pipeline a bundle in place of its transformer; returns the pipeline.

    Args:
        pipe: a pipeline of the bundle's family; text-to-image, img2img and inpaint alike. Its own transformer may be
            None (loaded without, to save memory) and is kept for `restore`.
        bundle: an opened bundle; it may serve many pipelines and threads at once.
        policy: what to compute when; the bundle's default policy if None. By name it is the bundle's as well, with
            `options` and the bundle's plan for its budget: ``accelerate(pipe, bundle, "drift", budget=12)``.
        words: the prompts behind embeddings the pipeline will be called with, as for `words`.
        weights: how the pipeline's weights are compared with those the bundle was built from: by a sample of every
            tensor, or "all" of them; "bundle" means that the bundle's are wanted, whatever the pipeline has.
        strict: whether a run that the policy can't carry out (a scheduler that adds noise, too few steps, no known
            words for its mask) is an error. Otherwise it is dense, or has no mask, and the report says so.

    Raises:
        InputError: a pipeline of another family or with a transformer of another architecture or with other weights;
            a policy's name or an option that doesn't exist.
        BundleError, MissingComponentError: the bundle's engine can't run on this machine.
    """
    manifest = bundle.manifest
    if not any(kind.__name__ in manifest.call.pipelines for kind in type(pipe).__mro__):
        raise InputError(
            f"A {type(pipe).__name__} was given, but this bundle serves {', '.join(manifest.call.pipelines)}; "
            "load one of these, or build a bundle of the pipeline's own family."
        )
    if getattr(pipe, "transformer_2", None) is not None:
        raise InputError(
            "This pipeline denoises with two transformers by turns (Wan 2.2), and a bundle stands for one; load a "
            "pipeline with one transformer, such as Wan 2.1."
        )
    restore(pipe)
    _check_architecture(pipe.transformer, bundle)
    running = which_weights(pipe, bundle, weights)
    if policy is None or isinstance(policy, str):
        policy = policy_for(manifest, policy, options)
    elif options:
        raise InputError(
            f"{next(iter(options))} was given beside a policy made already; give it when making the policy, or give "
            "the policy by name."
        )
    original, encode = pipe.transformer, getattr(pipe, "encode_prompt", None)
    settings = Settings(policy, strict, told(words) if words else (), weights=running)
    accelerated = AcceleratedTransformer(pipe, bundle, settings, original)
    pipe.transformer = accelerated
    if encode is not None:
        _cover(pipe, "encode_prompt", accelerated.watching(encode))
    _cover(pipe, "save_pretrained", _Saving(weakref.ref(pipe)))
    _offload_again(pipe)
    if original is None:
        # The pipeline read these from its transformer when it was made.
        if "sample_size" in manifest.transformer_config:
            pipe.default_sample_size = manifest.transformer_config["sample_size"]
            if hasattr(pipe, "default_image_size"):
                pipe.default_image_size = pipe.default_sample_size * pipe.vae_scale_factor
        pipe.patch_size = manifest.latents.patch
    return pipe


def restore(pipe: Any) -> Any:
    """Put a pipeline's own transformer back; a pipeline that isn't accelerated stays as it is."""
    accelerated = stand_in(pipe)
    if accelerated is not None:
        pipe.transformer = accelerated.moved_original()
        for name in ("encode_prompt", "save_pretrained"):
            _uncover(pipe, name)
        _offload_again(pipe)
    return pipe


def _offload_again(pipe: Any) -> None:
    """Where a pipeline moves its components to the device in turns, let it know the one that is new."""
    if getattr(pipe, "_all_hooks", None):
        pipe.enable_model_cpu_offload(device=getattr(pipe, "_offload_device", None))


def stand_in(pipe: Any) -> AcceleratedTransformer | None:
    """What stands in a pipeline for its transformer, compiled or not; None where it has its own."""
    found = unwrapped(getattr(pipe, "transformer", None))
    return found if isinstance(found, AcceleratedTransformer) else None


def _cover(pipe: Any, name: str, cover: Any) -> None:
    """Put `cover` before a method of one pipeline, over what somebody may have put there before."""
    cover.covered = vars(pipe).get(name)
    setattr(pipe, name, cover)


def _uncover(pipe: Any, name: str) -> None:
    cover = vars(pipe).get(name)
    if isinstance(cover, (_Watched, _Saving)):
        if cover.covered is None:
            delattr(pipe, name)  # uncovers the class's own
        else:
            setattr(pipe, name, cover.covered)


def words(pipe: Any, prompts: str | Sequence[str] | None) -> None:
    """Say which prompts are behind the embeddings that an accelerated pipeline is called with.

    Needed where they can't be known: embeddings loaded from a file, or made by another pipeline or before `accelerate`.
    Holds for all calls with embeddings nobody knows, until said otherwise.

    Args:
        pipe: an accelerated pipeline.
        prompts: the prompt of every image of a call, or one for all of them; None: not known any more.

    Raises:
        InputError: a pipeline that isn't accelerated, or anything but texts.
    """
    accelerated = stand_in(pipe)
    if accelerated is None:
        raise InputError(f"This {type(pipe).__name__} isn't accelerated; call ax.accelerate(pipe, bundle) first.")
    accelerated.settings.told = () if prompts is None else told(prompts)


def _check_architecture(transformer: Any, bundle: Bundle) -> None:
    if transformer is None:
        return
    if getattr(transformer, "peft_config", None):
        raise InputError(
            "The pipeline's transformer has LoRA weights loaded, which an engine has no place for; call "
            "pipe.unload_lora_weights(), or fuse them, save the pipeline and build a bundle from that."
        )
    for name, built in bundle.manifest.transformer_config.items():
        if name.startswith("_") or name in _NOT_ARCHITECTURE:
            continue
        own = getattr(transformer.config, name, None)
        if _plain(own) != _plain(built):
            raise InputError(
                f"The pipeline's transformer has {name} = {own!r}, but bundle {bundle.path} was built for {built!r}; "
                "build a bundle from this pipeline's checkpoint."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


class AcceleratedTransformer(torch.nn.Module):
    """Stands in a pipeline for its transformer: same call, same output, computed by a bundle's engine.

    Attributes:
        config: the transformer's diffusers config, as pipelines read it.
        original: what stood here before.
    """

    def __init__(self, pipe: Any, bundle: Bundle, settings: Settings, original: Any) -> None:
        super().__init__()
        manifest = bundle.manifest
        # Around Module.__setattr__: the original is no part of this module, and moves with nobody.
        object.__setattr__(self, "original", original)
        self.config = _config(bundle)
        self.dtype = torch_dtype(manifest.contract.dtype)
        for name, value in manifest.call.attributes.items():
            setattr(self, name, value)
        self.settings = settings
        self._bundle = bundle
        self._session = bundle.session()
        self._pipe = weakref.ref(pipe)
        self._trackers: weakref.WeakKeyDictionary[Any, RunTracker] = weakref.WeakKeyDictionary()
        self._latest: RunTracker | None = None
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
        return self._session.device

    def report(self, pipe: Any = None) -> RunReport:
        """The last run, or the current one so far; of `pipe` where several share the engine."""
        tracker = self._latest if pipe is None else self._trackers.get(pipe)
        if tracker is None:
            raise InputError("No run was started yet, so there is nothing to report.")
        return tracker.report()

    def watching(self, encode: Callable[..., Any]) -> _Watched:
        """`encode_prompt` of the pipeline, whose prompts are remembered with what was made of them."""
        return _Watched(encode, self.settings, self._pipe)

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """What pipelines wrap the calls of a step in when there are several: "cond", "uncond"."""
        self._of_thread.branch = name
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
        tracker = self._trackers.get(caller.pipe)
        if tracker is None:
            tracker = RunTracker(self._bundle.manifest, self._session, self.settings)
            self._trackers[caller.pipe] = tracker
        self._latest = tracker
        branch = getattr(self._of_thread, "branch", CONDITIONAL)
        output = tracker.step(caller, branch, hidden_states, args, kwargs)
        if not return_dict:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)


def _config(bundle: Bundle) -> Any:
    """The transformer's config as a diffusers pipeline reads it."""
    from diffusers.configuration_utils import FrozenDict

    class Config(FrozenDict):
        def __getattr__(self, name: str) -> NoReturn:
            raise MissingConfigError(
                f"Bundle {bundle.path} doesn't say what {name} its transformer has, which this pipeline reads; "
                "build it again with this release of diffusers."
            )

    return Config(bundle.manifest.transformer_config)


class _Watched:
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
        given = dict(bound.arguments)
        given |= given.pop("kwargs", {})
        rows = () if given.get("prompt_embeds") is not None else rows_of(given, self._pipe())
        if rows:
            self._settings.encoded.remember(embedded[0], rows)
        self._settings.guided = bool(given.get("do_classifier_free_guidance"))
        return embedded


class _Saving:
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
