"""What a pipeline calls its transformer with: recorded by a stand-in that computes nothing.

So every family's own pipeline says what its text is encoded to, at which timesteps the transformer is called, and how
the scheduler moves the latents; tuning repeats that without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense
from accelaes_export.runtime.arguments import Arguments
from accelaes_export.runtime.generate import call_arguments
from accelaes_export.runtime.pipeline import accelerate, restore
from accelaes_export.runtime.stand_in import AcceleratedTransformer
from accelaes_export.runtime.step_inputs import StepInputs


@dataclass(frozen=True)
class Schedule:
    """How a run of T steps goes.

    Attributes:
        sigmas: [T + 1], falling.
        timesteps: [T] that the transformer is called with.
        sign: latents move by sign x (difference of sigmas) x prediction: -1 where pipelines negate it.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    sign: float

    @property
    def steps(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Conditions:
    """What pictures begin with that go through a run together.

    Attributes:
        latents: [b, ...] fp32.
        conditioning: [B, ...] by name.
        paired: whether rows are guidance pairs.
        shared: the names of conditioning that has no batch axis.
    """

    latents: torch.Tensor
    conditioning: dict[str, torch.Tensor]
    paired: bool
    shared: frozenset[str]

    @property
    def images(self) -> int:
        return self.latents.shape[0]

    def beside(self, other: Conditions) -> bool:
        """Whether both can be one: texts may be of different lengths."""
        return self.paired == other.paired and all(
            torch.equal(own, other.conditioning[name])
            if name in self.shared
            else own[0].shape == other.conditioning[name][0].shape
            for name, own in self.conditioning.items()
        )


def together(conditions: Sequence[Conditions], most: int) -> list[Conditions]:
    """The same pictures in the same order, neighbours in one as far as they can be, of `most` pictures at most."""
    groups: list[list[Conditions]] = []
    for own in conditions:
        if groups and len(groups[-1]) < most and groups[-1][-1].beside(own):
            groups[-1].append(own)
        else:
            groups.append([own])
    return [_one(group) for group in groups]


def _one(group: Sequence[Conditions]) -> Conditions:
    """Pictures that are alone as one batch."""
    first = group[0]

    def rows(name: str) -> torch.Tensor:
        own = [conditions.conditioning[name] for conditions in group]
        if name in first.shared:
            return own[0]
        return torch.cat([tensor.unflatten(0, (1 + first.paired, 1)) for tensor in own], dim=1).flatten(0, 1)

    latents = torch.cat([conditions.latents for conditions in group])
    return Conditions(latents, {name: rows(name) for name in first.conditioning}, first.paired, first.shared)


def _predicted(call: int) -> float:
    """What is said at a call: not always the same, or a solver that looks back would go as Euler does."""
    return 1.0 + 0.5 * (call % 3)


class _Enough(Exception):
    """The call that was wanted has been recorded."""


class _Recorder(AcceleratedTransformer):
    """Predicts one number everywhere, another at every call, and keeps what it was called with."""

    def record(self, most: int | None) -> list[StepInputs]:
        """Begin anew; `_Enough` is raised at call number `most`."""
        self.calls: list[StepInputs] = []
        self._most = most
        one = self.served[0]
        self._arguments = Arguments(one.bundle.manifest.call, one.geometry)
        return self.calls

    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        self.calls.append(self._arguments.read(hidden_states, args, kwargs))
        if self._most is not None and len(self.calls) >= self._most:
            raise _Enough
        predicted = torch.full_like(hidden_states, _predicted(len(self.calls) - 1))
        latents = self.served[0].geometry.latents
        if not latents.packed:  # some pipelines expect a learned variance behind
            predicted = predicted[:, :1].repeat_interleave(latents.out_channels + latents.sigma_channels, dim=1)
        if not return_dict:
            return (predicted,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=predicted)


class Recording:
    """A bundle's pipeline with nothing behind it.

    Args:
        pipe: as `load_pipeline` gives it.
        guidance: the scale its calls are made with.
    """

    def __init__(self, pipe: Any, bundle: Bundle, guidance: float) -> None:
        if bundle.manifest.call.guidance.rescaled:
            raise _other_guidance(bundle)
        self._pipe, self._bundle, self._guidance = pipe, bundle, guidance

    def schedule(self, prompt: str, steps: int) -> Schedule:
        """How the pipeline goes through a run of so many steps.

        Raises:
            InputError: a scheduler whose steps aren't Euler's, or guidance by a second call.
        """
        moved: list[torch.Tensor] = []
        if "callback_on_step_end" not in inspect.signature(type(self._pipe).__call__).parameters:
            raise _other_solver(self._pipe)

        def after(_: Any, i: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            moved.append(kwargs["latents"].float())
            return kwargs

        calls = self._calls(prompt, steps, seed=0, most=None, callback_on_step_end=after)
        sigmas = tuple(float(sigma) for sigma in getattr(self._pipe.scheduler, "sigmas", ()))
        if len(calls) == 2 * steps and self._bundle.manifest.call.guidance.layout == "separate":
            raise _other_guidance(self._bundle)
        if len(sigmas) != len(calls) + 1 or len(calls) != steps:
            raise _other_solver(self._pipe)
        before = [calls[0].hidden_states[: moved[0].shape[0]].float(), *moved[:-1]]
        signs = torch.stack(
            [
                (y - x) / ((sigmas[i + 1] - sigmas[i]) * _predicted(i))
                for i, (x, y) in enumerate(zip(before, moved, strict=True))
            ]
        )
        sign = round(signs.mean().item())
        if abs(sign) != 1 or not torch.allclose(signs, torch.full_like(signs, sign), atol=2e-2):
            raise _other_solver(self._pipe)
        return Schedule(sigmas, tuple(float(call.timestep[0]) for call in calls), sign)

    def conditions(self, prompts: Sequence[str], seed: int) -> list[Conditions]:
        """What each prompt's picture begins with, each from a noise of its own."""
        contract, pairs = self._bundle.manifest.geometry.contract, self._bundle.manifest.call.guidance.pairs
        shared = frozenset(spec.name for spec in contract.inputs if spec.shape[0] != "B")
        found = []
        for k, prompt in enumerate(prompts):
            (call,) = self._calls(prompt, 2, seed=seed + k, most=1)
            paired = pairs and call.hidden_states.shape[0] == 2
            found.append(Conditions(call.hidden_states[:1].float(), dict(call.conditioning), paired, shared))
        return found

    def _calls(self, prompt: str, steps: int, *, seed: int, most: int | None, **options: Any) -> list[StepInputs]:
        pipe = accelerate(self._pipe, self._bundle, Dense())
        placed = pipe.transformer
        recorder = _Recorder(pipe, placed.served, placed.settings, placed.original)
        calls = recorder.record(most)
        pipe.transformer = recorder
        arguments = call_arguments(pipe, self._bundle.manifest, prompt, steps=steps, guidance=self._guidance, seed=seed)
        try:
            with torch.no_grad():
                pipe(**arguments | {"output_type": "latent"} | options)
        except _Enough:
            pass
        finally:
            pipe.transformer = placed
            restore(pipe)
        return calls


def _other_guidance(bundle: Bundle) -> InputError:
    return InputError(
        f"Tuning needs guidance in one call and by a plain sum, and {bundle.manifest.family}'s pipelines guide "
        "otherwise; tune a bundle of another family."
    )


def _other_solver(pipe: Any) -> InputError:
    return InputError(
        f"Coefficients are fitted to Euler's steps along sigmas, and {type(pipe.scheduler).__name__} as it is set "
        "moves otherwise; tune with the flow-matching Euler scheduler."
    )
