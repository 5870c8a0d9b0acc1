"""The drop-in: a diffusers pipeline whose transformer is a bundle. `accelerate` swaps it in, `restore` takes it out.

The pipeline is used as before. Two of its parts are watched: `encode_prompt`, which every call makes first, begins
a new run and brings the prompt's words (pipelines without text begin one by setting new timesteps); the scheduler
says which step of how many this is. Both are host-side integers and strings, so the device is never waited for.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from accelaes_export.bundle import Bundle
from accelaes_export.contract import TensorSpec
from accelaes_export.dtypes import torch_dtype
from accelaes_export.errors import InputError
from accelaes_export.policies.base import Policy
from accelaes_export.runtime.arguments import Arguments
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL, Denoiser
from accelaes_export.runtime.engine_calls import Conditions
from accelaes_export.runtime.policy_choice import policy_for
from accelaes_export.runtime.prompts import PromptWeights, Texts
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.trajectory import Run

_FOREIGN = "This transformer serves another pipeline; call ax.accelerate on the pipeline you use."
_REMEMBERED = 4  # prompts and negative prompts of a run or two
_NOT_ARCHITECTURE = frozenset({"sample_size"})


def accelerate(pipe: Any, bundle: Bundle, policy: Policy | str | None = None, **options: Any) -> Any:
    """Give a diffusers pipeline a bundle in place of its transformer; returns the pipeline.

    Args:
        pipe: a pipeline of the bundle's family; text-to-image, img2img and inpaint alike. Its own transformer may be
            None (loaded without, to save memory) and is kept for `restore`.
        bundle: an opened bundle; it may serve many pipelines and threads at once.
        policy: what to compute when; the bundle's default policy if None. By name it is the bundle's as well, with
            `options` and the bundle's plan for its budget: ``accelerate(pipe, bundle, "drift", budget=12)``.

    Raises:
        InputError: a pipeline of another family or with a transformer of another architecture; a policy's name or an
            option that doesn't exist.
        BundleError, MissingComponentError: the bundle's engine can't run on this machine.
    """
    manifest = bundle.manifest
    if type(pipe).__name__ not in manifest.call.pipelines:
        raise InputError(
            f"A {type(pipe).__name__} was given, but this bundle serves {', '.join(manifest.call.pipelines)}; "
            "load one of these, or build a bundle of the pipeline's own family."
        )
    if getattr(pipe, "transformer_2", None) is not None:
        raise InputError(
            "This pipeline denoises with two transformers by turns (Wan 2.2), and a bundle stands for one; load a "
            "pipeline with one transformer, such as Wan 2.1."
        )
    if isinstance(getattr(pipe, "transformer", None), AcceleratedTransformer):
        restore(pipe)
    _check_architecture(pipe.transformer, bundle)
    if policy is None or isinstance(policy, str):
        policy = policy_for(manifest, policy, options)
    elif options:
        raise InputError(
            f"{next(iter(options))} was given beside a policy made already; give it when making the policy, or give "
            "the policy by name."
        )
    original, encode = pipe.transformer, getattr(pipe, "encode_prompt", None)
    accelerated = AcceleratedTransformer(pipe, bundle, policy, original)
    pipe.transformer = accelerated
    if encode is not None:
        pipe.encode_prompt = accelerated.watching(encode)
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
    accelerated = pipe.transformer
    if isinstance(accelerated, AcceleratedTransformer):
        pipe.transformer = accelerated.original
        vars(pipe).pop("encode_prompt", None)  # uncovers the class's own
    return pipe


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


def _check_labels(labels: torch.Tensor, spec: TensorSpec) -> None:
    """InputError for a label outside the model's table, beyond which a GPU would just read on; waits, once a run."""
    assert spec.limit is not None
    unknown = [label for label in labels.tolist() if not 0 <= label < spec.limit]
    if unknown:
        raise InputError(
            f"{spec.name} has {', '.join(map(str, unknown))}, but this model knows 0 to {spec.limit - 1:.0f} alone; "
            "choose among these."
        )


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
        for name, value in manifest.call.attributes.items():
            setattr(self, name, value)
        self._session = bundle.session()
        self._arguments = Arguments(manifest)
        self._policy = policy
        self._shares = manifest.sparse_fractions, manifest.range_shares
        self._has_text = bool(manifest.text)
        self._pipe = weakref.ref(pipe)
        self._denoiser = Denoiser(self._session, manifest.latents, manifest.bucket_fractions, manifest.call.guidance)
        self._prompts = PromptWeights(manifest)
        self._branch = CONDITIONAL
        self._seen: dict[str, int] | None = None  # branch to its last step, while a run is under way
        self._timesteps: Any = None  # the scheduler's, of the current run
        self._encoded: list[Texts] = []  # since the last run began
        self._known: list[Texts] = []  # the latest few, for embeddings that are handed back
        self._words: tuple[Any, ...] = ()
        self._images: int | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what pipelines look for when adapters are loaded or used
            raise AttributeError(
                f"A bundle stands for this pipeline's transformer and has no {name}: LoRA weights and IP-adapters "
                "can't be added to an engine; ax.restore(pipe) for them."
            ) from None

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
            embedded = encode(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            texts = Texts.of_call(given, embedded[0], self._pipe())
            if texts is None:  # embeddings this pipeline may have made before, handed back to it
                handed = given.get("prompt_embeds")
                texts = next((known for known in self._known if known.made(handed)), None)
            texts = texts or Texts.unknown(embedded[0])
            self._encoded = [*self._encoded, texts][-_REMEMBERED:]
            self._known = [*self._known, texts][-_REMEMBERED:]
            return embedded

        return encode_prompt

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """What pipelines wrap the calls of a step in when there are several: "cond", "uncond"."""
        self._branch = name
        try:
            yield
        finally:
            self._branch = CONDITIONAL

    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """One step, with the arguments of the transformer this replaces.

        Raises:
            InputError: arguments the engine can't serve, or a call from outside the accelerated pipeline.
        """
        call = self._arguments.read(hidden_states, args, kwargs)
        pipe = self._pipe()
        if pipe is None or pipe.transformer is not self:
            raise InputError(_FOREIGN)
        if self._encoded if self._has_text else pipe.scheduler.timesteps is not self._timesteps:
            self._start(pipe, call.conditioning)
        i = self._step_index(pipe.scheduler)
        branch = self._branch
        if self._denoiser.guidance.layout == "separate" and (self._seen or {}).get(branch) == i:
            branch = UNCONDITIONAL  # img2img pipelines don't say which call is which: it is the step's second
        if self._seen is None or i <= self._seen.get(branch, -1):
            raise InputError(_FOREIGN)  # a run that began without this pipeline's encode_prompt
        self._seen[branch] = i
        paired = self._denoiser.guidance.pairs and hidden_states.shape[0] == 2 * (self._images or 0)
        now = Conditions(call.hidden_states, call.timestep, call.conditioning, paired)
        output = self._denoiser.step(i, now, branch=branch, renewed=call.renewed)
        if not return_dict:
            return (output,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)

    def _step_index(self, scheduler: Any) -> int:
        """Which step this is: the scheduler's own count, or this branch's calls where it keeps none (DDIM)."""
        assert self._seen is not None or self._has_text
        if not hasattr(scheduler, "step_index"):
            return (self._seen or {}).get(self._branch, -1) + 1
        at = scheduler.step_index
        return 0 if at is None else at - (getattr(scheduler, "begin_index", None) or 0)

    def _start(self, pipe: Any, conditioning: Mapping[str, torch.Tensor]) -> None:
        """Begin a run: T from the scheduler, the plan from the policy, token weights from the prompt."""
        encoded, self._encoded, self._seen = self._encoded, [], None
        contract, scheduler = self._session.contract, pipe.scheduler
        self._timesteps = scheduler.timesteps
        for spec in contract.inputs:
            if spec.kind == "label":
                _check_labels(conditioning[spec.name], spec)
        begin = getattr(scheduler, "begin_index", None) or 0
        steps = len(scheduler.timesteps) - begin
        plan = self._policy.plan(steps, *self._shares)
        weights, self._words, self._images = None, (), None
        if encoded and contract.text_input is not None:
            text = conditioning[contract.text_input]
            # Pipelines that guide with a second call encode its text as well: the first call says which is which.
            texts = next((one for one in encoded if one.made(text)), encoded[-1])
            self._images = texts.images
            if self._policy.affinity_steps(plan):
                weights, self._words = self._prompts.weigh(pipe, texts, text.shape[1], self._policy.word_scoring)
        clock: list[float] = [float(i) for i in range(steps)]
        if self._policy.extrapolation.clock == "sigma":
            if not hasattr(scheduler, "sigmas"):
                raise InputError(f'{type(scheduler).__name__} has no sigmas; take clock="step".')
            clock = scheduler.sigmas[begin : begin + steps].tolist()
        # Multistep solvers, and those that evaluate twice a step, extrapolate by themselves.
        first_order = getattr(scheduler.config, "solver_order", 1) == 1 and getattr(scheduler, "order", 1) == 1
        self._denoiser.start(Run(self._policy, plan, clock, weights, first_order=first_order))
        self._seen = {}
