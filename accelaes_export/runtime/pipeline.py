"""The drop-in: a diffusers pipeline whose transformer is a bundle. `accelerate` swaps it in, `restore` takes it out.

The pipeline is used as before. Two of its parts are watched: `encode_prompt`, which every call makes first, begins
a new run and brings the prompt's words; the scheduler says which step of how many this is. Both are host-side
integers and strings, so the device is never waited for.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch

from accelaes_export.bundle import Bundle
from accelaes_export.dtypes import torch_dtype
from accelaes_export.errors import InputError
from accelaes_export.policies import named
from accelaes_export.policies.base import Policy
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.prompts import PromptWeights, Texts
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.trajectory import Run

_FOREIGN = "This transformer serves another pipeline; call ax.accelerate on the pipeline you use."
_NOT_ARCHITECTURE = frozenset({"sample_size"})


def accelerate(pipe: Any, bundle: Bundle, policy: Policy | None = None) -> Any:
    """Give a diffusers pipeline a bundle in place of its transformer; returns the pipeline.

    Args:
        pipe: a pipeline of the bundle's family; text-to-image, img2img and inpaint alike. Its own transformer may be
            None (loaded without, to save memory) and is kept for `restore`.
        bundle: an opened bundle; it may serve many pipelines and threads at once.
        policy: what to compute when; the bundle's default policy if None.

    Raises:
        InputError: a pipeline of another family or with a transformer of another architecture.
        BundleError, MissingComponentError: the bundle's engine can't run on this machine.
    """
    manifest = bundle.manifest
    if type(pipe).__name__ not in manifest.pipelines:
        raise InputError(
            f"A {type(pipe).__name__} was given, but this bundle serves {', '.join(manifest.pipelines)}; "
            "load one of these, or build a bundle of the pipeline's own family."
        )
    if isinstance(getattr(pipe, "transformer", None), AcceleratedTransformer):
        restore(pipe)
    _check_architecture(pipe.transformer, bundle)
    policy = policy or named(manifest.defaults.policy, **manifest.defaults.policy_options)
    original, encode = pipe.transformer, pipe.encode_prompt
    accelerated = AcceleratedTransformer(pipe, bundle, policy, original)
    pipe.transformer = accelerated
    pipe.encode_prompt = accelerated.watching(encode)
    if original is None:
        # The pipeline read these from its transformer when it was made.
        pipe.default_sample_size = manifest.transformer_config["sample_size"]
        pipe.patch_size = manifest.latents.patch
    return pipe


def restore(pipe: Any) -> Any:
    """Put a pipeline's own transformer back; a pipeline that isn't accelerated stays as it is."""
    accelerated = pipe.transformer
    if isinstance(accelerated, AcceleratedTransformer):
        pipe.transformer = accelerated.original
        del pipe.encode_prompt  # uncovers the class's own
    return pipe


def _check_architecture(transformer: Any, bundle: Bundle) -> None:
    if transformer is None:
        return
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

    def __init__(self, pipe: Any, bundle: Bundle, policy: Policy, original: Any) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        manifest = bundle.manifest
        # Around Module.__setattr__: the original is no part of this module, and moves with nobody.
        object.__setattr__(self, "original", original)
        self.config = FrozenDict(manifest.transformer_config)
        self.dtype = torch_dtype(manifest.contract.dtype)
        self._session = bundle.session()
        self._signature = manifest.signature
        self._policy = policy
        self._fractions = manifest.bucket_fractions
        self._pipe = weakref.ref(pipe)
        self._denoiser = Denoiser(self._session, manifest.latents, manifest.bucket_fractions)
        self._prompts = PromptWeights(manifest)
        self._next_step: int | None = None  # while no run is under way
        self._pending: Texts | None = None
        self._texts: Texts | None = None
        self._words: tuple[Any, ...] = ()

    @property
    def device(self) -> torch.device:
        return self._session.device

    def report(self) -> RunReport:
        """The last run, or the current one so far."""
        report = self._denoiser.report()
        report.words = self._words
        return report

    def watching(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """`encode_prompt` of the pipeline, with the texts of every call remembered: a call of it begins a run."""
        signature = inspect.signature(encode)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            self._pending = None
            embedded = encode(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            texts = Texts.of_call(given, embedded[0])
            if texts is None and self._texts is not None and self._texts.made(given.get("prompt_embeds")):
                texts = self._texts  # embeddings this pipeline made before, handed back to it
            self._texts = self._pending = texts or Texts.unknown(embedded[0])
            return embedded

        return encode_prompt

    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """One step, with the arguments of the transformer this replaces.

        Raises:
            InputError: an argument the engine has no input for (control residuals, skipped layers, LoRA scale),
                or a call from outside the accelerated pipeline.
        """
        given = dict(zip(self._signature[1:], args, strict=False)) | kwargs
        contract = self._session.contract
        conditioning = {name: given.pop(name, None) for name in contract.conditioning}
        timestep = given.pop("timestep", None)
        missing = [name for name, tensor in {**conditioning, "timestep": timestep}.items() if tensor is None]
        if missing:
            raise InputError(f"The transformer call lacks {', '.join(missing)}, which this bundle's engine needs.")
        extra = [name for name, value in given.items() if value is not None and value != {}]
        if extra:
            raise InputError(
                f"The engine has no input for {', '.join(extra)}; leave it out, or ax.restore(pipe) for this call."
            )
        pipe = self._pipe()
        if pipe is None or pipe.transformer is not self:
            raise InputError(_FOREIGN)
        begin = getattr(pipe.scheduler, "begin_index", None) or 0
        if self._pending is not None:
            self._start(pipe, begin, conditioning[contract.conditioning[0]])
        at = pipe.scheduler.step_index
        i = 0 if at is None else at - begin
        if self._next_step is None or i < self._next_step:  # a run that began without this pipeline's encode_prompt
            raise InputError(_FOREIGN)
        self._next_step = i + 1
        guidance = float(pipe.guidance_scale) if pipe.do_classifier_free_guidance else None
        output = self._denoiser.step(i, hidden_states, timestep, conditioning, guidance)
        if not return_dict:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)

    def _start(self, pipe: Any, begin: int, text: torch.Tensor) -> None:
        """Begin a run: T from the scheduler, the plan from the policy, token weights from the prompt."""
        assert self._pending is not None
        texts, self._pending, self._next_step = self._pending, None, None
        steps = len(pipe.scheduler.timesteps) - begin
        plan = self._policy.plan(steps, [fraction for fraction in self._fractions if fraction < 1])
        weights, self._words = None, ()
        if self._policy.affinity_steps(plan):
            weights, self._words = self._prompts.weigh(pipe, texts, text.shape[1], self._policy.word_scoring)
        clock: list[float] = [float(i) for i in range(steps)]
        if self._policy.extrapolation.clock == "sigma":
            clock = pipe.scheduler.sigmas[begin : begin + steps].tolist()
        self._denoiser.start(Run(self._policy, plan, clock, weights))
        self._next_step = 0
