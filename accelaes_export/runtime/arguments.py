"""From a pipeline's call of its transformer to the engine's inputs, as the manifest describes the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import TransformerCall
from accelaes_export.contract.tensors import TIMESTEP
from accelaes_export.errors import InputError
from accelaes_export.runtime.step_inputs import StepInputs

ROPE = "image_rotary_emb"
"""An argument some pipelines make at every step: complex rotations [rows, columns, hd/2] of a grid at least the
picture's. The engine takes its cosines and sines, `rope_cos` and `rope_sin`, [N, hd/2]."""

IDS = "img_ids"
"""Positions [N, 3] of packed tokens, which say by themselves how many rows and columns a picture has."""

SHAPES = "img_shapes"
"""The same said in words: for every prompt its pictures' frames, rows and columns of tokens."""


SIDES = ("num_frames", "height", "width")
"""And in plain numbers, as some pipelines of packed videos do."""


def is_of_size(geometry: Geometry, hidden_states: torch.Tensor, arguments: Mapping[str, Any]) -> bool:
    """Whether a call is of pictures of this size, as far as it says: packed tokens may be of several shapes."""
    latents = geometry.latents
    if tuple(hidden_states.shape[1:]) != latents.shape:
        return False
    if not latents.packed:
        return True
    if any(name in arguments and arguments[name] != geometry.fixed.get(name, arguments[name]) for name in SIDES):
        return False
    ids, shapes = arguments.get(IDS), arguments.get(SHAPES)
    if ids is not None:
        return _grid_of(ids) == latents.grid
    return not shapes or all(_shapes_of(pictures) == [latents.grid] for pictures in shapes)


def plain(value: Any) -> Any:
    """A value of a config or a call as JSON has it."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _grid_of(ids: torch.Tensor) -> tuple[int, int]:
    """Rows and columns that ids count to. Waits for the device."""
    rows, columns = (int(last) + 1 for last in ids.flatten(0, -2)[-1, -2:].tolist())
    return rows, columns


def _shapes_of(pictures: Any) -> list[tuple[int, ...]]:
    """Rows and columns of one prompt's pictures, a list of them or one alone."""
    return [tuple(shape[1:]) for shape in ([pictures] if isinstance(pictures, tuple) else pictures)]


class Arguments:
    """Reads calls; remembers the last rotation table, to notice another one."""

    def __init__(self, call: TransformerCall, geometry: Geometry) -> None:
        self._call, self._fixed = call, geometry.fixed
        self._names = geometry.contract.conditioning
        self._text = geometry.contract.text_input
        self._optional = tuple(spec.name for spec in geometry.contract.inputs if spec.optional)
        self._grid = geometry.latents.grid
        self._size = geometry.latents.asked_for
        self._rotations: torch.Tensor | None = None
        self._ids: torch.Tensor | None = None

    def read(self, hidden_states: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StepInputs:
        """The call's tensors by the engine's names.

        Raises:
            InputError: a tensor the engine needs is missing, an argument it has no input for is given (control
                residuals, skipped layers, LoRA scale), or a value it wasn't built for.
        """
        arguments = _flat(dict(zip(self._call.signature[1:], args, strict=False)) | dict(kwargs))
        renewed = self._rotate(arguments)
        self._check_grid(arguments.get(IDS))
        for pictures in arguments.get(SHAPES) or ():
            self._check_shapes(pictures)
        for name, built in self._fixed.items():
            value = arguments.pop(name, None)
            if name in SIDES and value != built:
                raise InputError(
                    f"The transformer call has {name} = {value} (latent), and this bundle was built for {built}; call "
                    f"the pipeline with {self._size}, or build a bundle for that size."
                )
            if plain(value) != plain(built):
                raise InputError(
                    f"The transformer call has {name} = {value!r}, but this bundle was built for {built!r}; "
                    "leave the pipeline's option as the bundle has it, or build again."
                )
        conditioning = {name: arguments.pop(name, None) for name in self._names}
        text = None if self._text is None else conditioning[self._text]
        for name in self._optional:
            if conditioning[name] is None and text is not None:
                conditioning[name] = text.new_ones(text.shape[:2])
        timestep = arguments.pop(TIMESTEP, None)
        missing = [name for name, tensor in {**conditioning, TIMESTEP: timestep}.items() if tensor is None]
        if missing:
            raise InputError(f"The transformer call lacks {', '.join(missing)}, which this bundle's engine needs.")
        if arguments.get("scale") == 1.0:  # of a LoRA that isn't there: what pipelines hand on where nobody asked
            del arguments["scale"]
        extra = [name for name, value in arguments.items() if value is not None and name not in self._call.built_in]
        if extra:
            raise InputError(
                f"The engine has no input for {', '.join(extra)}; leave it out, or ax.restore(pipe) for this call."
            )
        assert timestep is not None
        if timestep.ndim > 1:
            raise InputError(
                f"The transformer call has {timestep.shape[1]} timesteps a row, one for every token (expand_timesteps "
                "of Wan 2.2), but the engine takes one; ax.restore(pipe) for this pipeline."
            )
        there = {name: tensor for name, tensor in conditioning.items() if tensor is not None}
        return StepInputs(hidden_states, timestep, there, renewed=renewed)

    def _check_grid(self, ids: torch.Tensor | None) -> None:
        """InputError for ids of another grid, which may have as many tokens: 48x64 pixels and 64x48.

        Asked once of the ids that a run hands over at every step, as the answer is waited for.
        """
        if ids is None or ids is self._ids:
            return
        rows, columns = _grid_of(ids)
        if (rows, columns) != self._grid:
            raise self._other_grid(IDS, f"{rows} x {columns}")
        self._ids = ids

    def _check_shapes(self, pictures: Any) -> None:
        """The same for the shapes of one prompt's pictures."""
        shapes = _shapes_of(pictures)
        if shapes != [self._grid]:
            raise self._other_grid(SHAPES, " and ".join(f"{rows} x {columns}" for rows, columns in shapes))

    def _other_grid(self, name: str, given: str) -> InputError:
        return InputError(
            f"The call's {name} number {given} tokens, and this bundle's pictures have "
            f"{self._grid[0]} x {self._grid[1]}; call the pipeline with {self._size}, or build a bundle for that size."
        )

    def _rotate(self, arguments: dict[str, Any]) -> bool:
        """Put the picture's part of a rotation table in the engine's form; True if it differs from the last one."""
        if "rope_cos" not in self._names:
            return False
        table = arguments.pop(ROPE, None)
        if table is None:
            return False
        rows, columns = self._grid
        if table.shape[0] < rows or table.shape[1] < columns:
            raise InputError(
                f"The rotation table covers {table.shape[0]} x {table.shape[1]} tokens, and this bundle's pictures "
                f"have {rows} x {columns}."
            )
        own = table[:rows, :columns].flatten(0, 1)
        # On the host, where pipelines make the table: the device isn't asked.
        renewed = self._rotations is not None and not torch.equal(own, self._rotations)
        self._rotations = own
        arguments["rope_cos"], arguments["rope_sin"] = own.real.contiguous(), own.imag.contiguous()
        return renewed


def _flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that come in a dictionary, by their own names, and {} as nothing."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat
