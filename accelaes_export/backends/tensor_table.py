"""Checks a step's tensors against the contract before an engine sees them, so that a mistake is one clear sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import OBSERVED_INDEX, GraphContract, TensorSpec, places
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch


class StepSizes(NamedTuple):
    """The letters' sizes of one step: batch rows B, focus tokens n, text tokens M (m is N - n), whether a is n, and the
    tokens that each part of a layer-wise step computes."""

    B: int
    n: int
    M: int
    observed: bool = True
    counts: tuple[int, ...] | None = None


class TensorTable:
    """What a session takes: the contract's names, dtypes and shapes, contiguous, on one device.

    Args:
        contract: the graph's tensor table and buckets.
        device: where every tensor must live.
        alignment: what every tensor's address must be a multiple of, in bytes (empty tensors excepted).
    """

    def __init__(self, contract: GraphContract, device: torch.device, alignment: int = 1) -> None:
        self._contract = contract
        self._device = device
        self._alignment = alignment
        self._dtypes = {spec.name: torch_dtype(spec.dtype) for spec in (*contract.inputs, *contract.outputs)}
        self._batch_axis = _axis_of("B", contract.inputs) or (contract.inputs[0].name, 0)
        self._text_axis = _axis_of("M", contract.inputs)
        self._focus_axis = _axis_of("n", contract.inputs)  # none in a graph of all tokens
        self._observed_axis = _axis_of("a", contract.inputs)  # none without affinity, or where it is always made
        # A denoiser repeats the same few shapes at every step of every image.
        self.shapes = lru_cache(maxsize=64)(self._shapes)

    def _shapes(self, sizes: StepSizes) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        letters = self._contract.sizes(sizes.n, sizes.B, sizes.M, observed=sizes.observed, counts=sizes.counts)
        return self._contract.input_shapes(letters), self._contract.output_shapes(letters)

    def check(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> StepSizes:
        """The step's sizes.

        Raises InputError for a missing or unknown name, a bucket, batch or text length that was not built, and a
        tensor of another shape, dtype, device or layout than the contract's.
        """
        sizes = self._sizes(inputs)
        input_shapes, output_shapes = self.shapes(sizes)
        if inputs.keys() != input_shapes.keys():
            self._refuse_names("input", inputs, input_shapes, complete=True)
        if not outputs or not outputs.keys() <= output_shapes.keys():
            self._refuse_names("output", outputs, output_shapes, complete=False)
        for name, tensor in inputs.items():
            self._check_tensor(name, tensor, input_shapes[name], sizes)
        for name, tensor in outputs.items():
            self._check_tensor(name, tensor, output_shapes[name], sizes)
        return sizes

    def _sizes(self, inputs: Mapping[str, torch.Tensor]) -> StepSizes:
        contract = self._contract
        B = self._read(inputs, self._batch_axis)
        n = self._read(inputs, self._focus_axis) if self._focus_axis else contract.tokens
        M = self._read(inputs, self._text_axis) if self._text_axis else contract.text_tokens
        if not 1 <= B <= contract.rows:
            twice = "twice its" if contract.pairs else "its"
            raise InputError(
                f"This engine takes 1 to {contract.rows} batch rows, {twice} {contract.batch} image(s)"
                f"{' for guidance' if contract.pairs else ''}, and got {B}; build it with a larger batch or run "
                "fewer images a call."
            )
        if n not in contract.buckets:
            raise InputError(
                f"This engine has buckets for {_listed(contract.buckets)} focus tokens and got {n}; "
                f"round up to the next bucket, or build one for {n}."
            )
        if contract.text_tokens != M and not (contract.dynamic_text and M >= 1):
            raise InputError(
                f"This engine takes {contract.text_tokens} text tokens and got {M}; "
                "pad the prompt to its window or build with another."
            )
        a = self._read(inputs, self._observed_axis) if self._observed_axis else n
        if a not in (0, n):
            raise InputError(f"{OBSERVED_INDEX!r} has {a} tokens; the affinity is made of all {n} or of none.")
        return StepSizes(B, n, M, a > 0, self._counts(inputs))

    def _counts(self, inputs: Mapping[str, torch.Tensor]) -> tuple[int, ...] | None:
        """How many tokens each part of a layer-wise step computes; None for another step."""
        if self._contract.own_parts is None:
            return None
        counts = tuple(self._read(inputs, (places(label), 0)) for label in self._contract.own_parts.labels)
        if max(counts) > self._contract.tokens:
            raise InputError(
                f"A part was asked for {max(counts)} of {self._contract.tokens} tokens; ask for all of them at most."
            )
        return counts

    def _read(self, inputs: Mapping[str, torch.Tensor], place: tuple[str, int]) -> int:
        name, axis = place
        tensor = inputs.get(name)
        if tensor is None:
            raise InputError(
                f"Input {name!r} is missing; the engine takes {_listed(s.name for s in self._contract.inputs)}."
            )
        if tensor.ndim <= axis:
            spec = next(s for s in self._contract.inputs if s.name == name)
            raise InputError(f"Input {name!r} has shape {tuple(tensor.shape)}; its contract is {_pattern(spec)}.")
        return int(tensor.shape[axis])

    def _check_tensor(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], sizes: StepSizes) -> None:
        if tensor.shape != shape:
            raise InputError(
                f"{name!r} has shape {tuple(tensor.shape)}; with B={sizes.B}, n={sizes.n}, "
                f"m={self._contract.tokens - sizes.n}, M={sizes.M} it must be {shape}."
            )
        if tensor.dtype != self._dtypes[name]:
            raise InputError(
                f"{name!r} is {tensor.dtype}; the engine takes {self._dtypes[name]}: convert it with .to()."
            )
        if tensor.device != self._device:
            raise InputError(
                f"{name!r} lives on {tensor.device}; this session runs on {self._device}: move it with .to()."
            )
        if not tensor.is_contiguous():
            raise InputError(f"{name!r} is not contiguous (strides {tensor.stride()}); pass .contiguous().")
        if self._alignment > 1 and tensor.numel() and tensor.data_ptr() % self._alignment:
            raise InputError(
                f"{name!r} starts at an address that isn't a multiple of {self._alignment} bytes, as a view into "
                "another tensor can; pass .clone()."
            )

    @staticmethod
    def _refuse_names(kind: str, given: Mapping[str, object], allowed: Mapping[str, object], *, complete: bool) -> None:
        unknown = [name for name in given if name not in allowed]
        if unknown:
            raise InputError(f"Unknown {kind} {_listed(unknown)}; the engine has {_listed(allowed)}.")
        if complete:
            missing = [name for name in allowed if name not in given]
            raise InputError(f"Missing {kind} {_listed(missing)}; every {kind} of the contract is needed.")
        raise InputError(f"No {kind} was asked for; name at least one of {_listed(allowed)}.")


def _axis_of(letter: Literal["B", "M", "n", "a"], specs: tuple[TensorSpec, ...]) -> tuple[str, int] | None:
    """The first tensor and axis that carries `letter`, or None."""
    return next(((spec.name, spec.shape.index(letter)) for spec in specs if letter in spec.shape), None)


def _pattern(spec: TensorSpec) -> str:
    return "[" + ", ".join(map(str, spec.shape)) + "]"


def _listed(names: Iterable[object]) -> str:
    items = [str(name) for name in names]
    return ", ".join(items if len(items) <= 12 else [*items[:10], f"... ({len(items)} in all)"])
