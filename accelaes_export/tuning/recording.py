"""What a pipeline calls its transformer with: recorded by a stand-in that computes nothing.

So every family's own pipeline says what its text is encoded to, at which timesteps the transformer is called, and how
the scheduler moves the latents; tuning repeats that without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense
from accelaes_export.runtime.arguments import Arguments
from accelaes_export.runtime.generate import call_arguments
from accelaes_export.runtime.pipeline import accelerate, restore
from accelaes_export.runtime.stand_in import AcceleratedTransformer
from accelaes_export.runtime.step_inputs import StepInputs

_SHORT = 2
"""Steps of runs that are wanted for their beginning or their end alone."""


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


@dataclass(frozen=True)
class _End:
    """Latents [1, ...] that a run of a schedule is to end with."""

    latents: torch.Tensor
    schedule: Schedule


class _Enough(Exception):
    """The call that was wanted has been recorded."""


class _Recorder(AcceleratedTransformer):
    """Predicts one number everywhere, another at every call, and keeps what it was called with."""

    def record(self, most: int | None, end: _End | None) -> list[StepInputs]:
        """Begin anew; `_Enough` is raised at call number `most`, or the last step leads to an end."""
        self.calls: list[StepInputs] = []
        self._most, self._end = most, end
        one = self.served[0]
        self._arguments = Arguments(one.bundle.manifest.call, one.geometry)
        return self.calls

    def forward(self, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        self.calls.append(self._arguments.read(hidden_states, args, kwargs))
        if self._most is not None and len(self.calls) >= self._most:
            raise _Enough
        predicted = self._says(hidden_states, len(self.calls) - 1)
        latents = self.served[0].geometry.latents
        if not latents.packed:  # some pipelines expect a learned variance behind
            predicted = torch.nn.functional.pad(
                predicted[:, : latents.out_channels], (0, 0) * (predicted.ndim - 2) + (0, latents.sigma_channels)
            )
        if not return_dict:
            return (predicted,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=predicted)

    def _says(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """At step i, of rows x."""
        end = self._end
        if end is None or i + 1 < end.schedule.steps:
            return torch.full_like(x, _predicted(i))
        change = end.schedule.sigmas[i + 1] - end.schedule.sigmas[i]
        return (end.latents.to(x) - x) / (end.schedule.sign * change)


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
        calls, _ = self._run(prompt, steps, **_watched(self._pipe, moved))
        sigmas = tuple(float(sigma) for sigma in getattr(self._pipe.scheduler, "sigmas", ()))
        if len(calls) == 2 * steps and self._bundle.manifest.call.guidance.layout == "separate":
            raise _other_guidance(self._bundle)
        if len(sigmas) != len(calls) + 1 or not len(calls) == len(moved) == steps:
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
            (call,), _ = self._run(prompt, _SHORT, seed=seed + k, most=1)
            paired = pairs and call.hidden_states.shape[0] == 2
            found.append(Conditions(call.hidden_states[:1].float(), dict(call.conditioning), paired, shared))
        return found

    def pictures(self, latents: torch.Tensor, prompt: str) -> list[NDArray[np.float32]]:
        """What the pipeline makes of latents [b, ...] that a run ended with: [h, w, 3], or of videos [F, h, w, 3], from
        0 to 1. The prompt is any; the pipeline only wants one."""
        schedule = self.schedule(prompt, _SHORT)
        found: list[NDArray[np.float32]] = []
        for one in latents.split(1):
            _, output = self._run(prompt, _SHORT, end=_End(one, schedule), output_type="np")
            made = output.frames if hasattr(output, "frames") else output.images
            found.append(np.asarray(made[0], dtype=np.float32))
        return found

    def _run(
        self,
        prompt: str,
        steps: int,
        *,
        seed: int = 0,
        most: int | None = None,
        end: _End | None = None,
        **options: Any,
    ) -> tuple[list[StepInputs], Any]:
        """The transformer's calls, and what the pipeline returns; None where it is stopped at call number `most`."""
        pipe = accelerate(self._pipe, self._bundle, Dense())
        placed = pipe.transformer
        recorder = _Recorder(pipe, placed.served, placed.settings, placed.original)
        calls = recorder.record(most, end)
        pipe.transformer = recorder
        arguments = call_arguments(pipe, self._bundle.manifest, prompt, steps=steps, guidance=self._guidance, seed=seed)
        output = None
        try:
            with torch.no_grad():
                output = pipe(**arguments | {"output_type": "latent"} | options)
        except _Enough:
            pass
        finally:
            pipe.transformer = placed
            restore(pipe)
        return calls, output


def _watched(pipe: Any, moved: list[torch.Tensor]) -> dict[str, Any]:
    """Options of a call that appends the latents after every step; none for a pipeline that doesn't show them."""
    options = inspect.signature(type(pipe).__call__).parameters
    if "callback_on_step_end" in options:

        def after(_: Any, i: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            moved.append(kwargs["latents"].float())
            return kwargs

        return {"callback_on_step_end": after}
    if "callback_steps" in options:
        return {"callback": lambda i, t, latents: moved.append(latents.float()), "callback_steps": 1}
    return {}


def _other_guidance(bundle: Bundle) -> InputError:
    return InputError(
        f"Tuning needs guidance in one call and by a plain sum, and {bundle.manifest.family}'s pipelines guide "
        "otherwise; tune a bundle of another family."
    )


def _other_solver(pipe: Any) -> InputError:
    return InputError(
        f"Coefficients are fitted to Euler's steps along sigmas, and {type(pipe.scheduler).__name__} as it is set "
        "moves otherwise; tune with FlowMatchEulerDiscreteScheduler, or another of order 1 that predicts flow."
    )


class Schedules:
    """Of a recording's runs, by their number of steps."""

    def __init__(self, recording: Recording, prompt: str) -> None:
        self._recording, self._prompt = recording, prompt
        self._known: dict[int, Schedule] = {}

    def of(self, steps: int) -> Schedule:
        """InputError where a run can't be repeated."""
        if steps not in self._known:
            self._known[steps] = self._recording.schedule(self._prompt, steps)
        return self._known[steps]
