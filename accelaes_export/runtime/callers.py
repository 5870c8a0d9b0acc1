"""Who calls the transformer: the pipeline, and the arguments of its own call, read from the Python frames.

Pipelines share their components (`from_pipe`, `components`, one a request), so the transformer can't know its caller
otherwise; and what a call was asked for reaches no component at all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

_READ = (
    "prompt",
    "prompt_2",
    "prompt_3",
    "clean_caption",
    "eta",
    "timesteps",
    "do_classifier_free_guidance",
    "skip_guidance_layers",
    "guidance_scale",
    "true_cfg_scale",
)


@dataclass(frozen=True)
class Caller:
    """A pipeline in the middle of its call.

    Attributes:
        pipe: the pipeline.
        given: those of the call's arguments and variables that are read here, by name; empty in a loop of the
            user's own.
    """

    pipe: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guided(self) -> bool | None:
        """Whether the pipeline guides, by what its call says now; None where it doesn't say."""
        value = self.given.get("do_classifier_free_guidance")
        if value is None and self.given:
            value = getattr(self.pipe, "do_classifier_free_guidance", None)
        return None if value is None else bool(value)

    @property
    def displaced(self) -> bool:
        """Whether the scheduler was set to other timesteps since this call began."""
        own, now = self.given.get("timesteps"), self.pipe.scheduler.timesteps
        if not isinstance(own, torch.Tensor) or not isinstance(now, torch.Tensor) or own.device != now.device:
            return False  # a copy, which says nothing
        return own.untyped_storage().data_ptr() != now.untyped_storage().data_ptr()


def caller_of(transformer: Any) -> Caller | None:
    """The pipeline that has `transformer` for its own and is calling it in this thread, or None."""
    pipe = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            variables = frame.f_locals
            owner = variables.get("self")
            if pipe is None and _has(owner, transformer):
                pipe = owner
            if pipe is not None and owner is pipe and code.co_name == "__call__":
                return Caller(pipe, {name: variables[name] for name in _READ if name in variables})
        frame = frame.f_back
    return None if pipe is None else Caller(pipe)


def _has(owner: Any, transformer: Any) -> bool:
    """Whether `owner` is a pipeline with this transformer, which torch.compile may have wrapped."""
    if isinstance(owner, torch.nn.Module):  # the frames between; asking them for what they don't have takes long
        return False
    return hasattr(owner, "scheduler") and unwrapped(getattr(owner, "transformer", None)) is transformer


def unwrapped(module: Any) -> Any:
    """The module itself where torch.compile wrapped it."""
    return getattr(module, "_orig_mod", module)
