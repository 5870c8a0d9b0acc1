"""A bundle's weights in a few numbers each, so that a pipeline with other weights isn't run on them without a word.

A fine-tune, or a LoRA that was fused, has the same architecture and other numbers in nearly every matrix it touches:
four numbers of each tensor tell. The hash of each tensor, compared on request, tells all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.records import Record
from accelaes_export.errors import BundleError, InputError
from accelaes_export.files.reading import parse_json, read_given

if TYPE_CHECKING:
    import torch

    Read = Callable[[str], torch.Tensor | None]

FINGERPRINT = "fingerprint.json"
_SAMPLED = 4


class TensorPrint(Record):
    """One parameter: some of its numbers, evenly spaced from the first to the last, and the hash of all."""

    shape: tuple[int, ...]
    numbers: tuple[float, ...]
    blake2b: str


class Fingerprint(Record):
    """Every parameter of the transformer a bundle was built of, in the bundle's dtype."""

    dtype: str
    tensors: dict[str, TensorPrint]


def fingerprint(names: Iterable[str], read: Read, exact: Read, dtype: str) -> Fingerprint:
    """Read every parameter once.

    Args:
        names: of the parameters.
        read: gives them in the build's dtype.
        exact: gives them in fp32.

    Raises:
        InputError: a weight that isn't finite, or isn't in the build's dtype, which has a smaller range.
    """
    import torch

    tensors = {}
    for name in names:
        tensor = read(name)
        assert tensor is not None, name
        if not bool(torch.isfinite(tensor).all()):
            raise _not_finite(name, exact(name), dtype)
        tensors[name] = TensorPrint(
            shape=tuple(tensor.shape), numbers=tuple(_sample(tensor).float().tolist()), blake2b=_digest(tensor)
        )
    return Fingerprint(dtype=dtype, tensors=tensors)


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """A bundle's; None for one that has none. BundleError for one that can't be read."""
    path = folder / FINGERPRINT
    try:
        return Fingerprint.model_validate(parse_json(read_given(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} can't be read ({str(error).splitlines()[0]}); build the bundle again.") from error


def differing(model: torch.nn.Module, fingerprint: Fingerprint, *, whole: bool = False) -> list[str] | None:
    """The parameters of `model` that aren't the ones the fingerprint was made of; None where that can't be told.

    It can't be of weights that are elsewhere (offloaded) or quantised. Waits for the device once, or once a tensor with
    `whole`, which compares every number.
    """
    import torch

    own = dict(model.named_parameters())
    comparable = [name for name in fingerprint.tensors if name in own and not own[name].is_meta]
    if len(comparable) < len(fingerprint.tensors) or not all(own[name].is_floating_point() for name in comparable):
        return None
    reshaped = [name for name in comparable if tuple(own[name].shape) != fingerprint.tensors[name].shape]
    if reshaped:
        return None
    samples = [_sample(own[name].detach()) for name in comparable]
    host = torch.cat([sample.double() for sample in samples]).cpu().split([len(sample) for sample in samples])
    found = []
    for name, numbers in zip(comparable, host, strict=True):
        wanted, kind = fingerprint.tensors[name], own[name].dtype
        if not _equal(numbers, torch.tensor(wanted.numbers, dtype=torch.float64), kind, torch_dtype(fingerprint.dtype)):
            found.append(name)
        elif whole and kind in (torch.float32, torch_dtype(fingerprint.dtype)):
            same = _digest(own[name].detach().to(torch_dtype(fingerprint.dtype)).cpu()) == wanted.blake2b
            found += [] if same else [name]
    return found


def _equal(own: torch.Tensor, built: torch.Tensor, kind: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether numbers of a tensor of type `kind` are those that were built in `dtype`, as far as both can tell."""
    import torch

    if kind == torch.float32:
        own = own.to(dtype).double()
    elif dtype == torch.float32:
        built = built.to(kind).double()
    elif kind != dtype:  # fp16 and bf16: one has the digits, the other the range
        return bool(torch.allclose(own, built, rtol=2**-8, atol=2**-24))
    return torch.equal(own, built)


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    places = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), dtype=torch.float64).round().long()
    return flat[places.to(flat.device)]


def _digest(tensor: torch.Tensor) -> str:
    import torch

    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.data, digest_size=8).hexdigest()


def _not_finite(name: str, exact: torch.Tensor | None, dtype: str) -> InputError:
    import torch

    assert exact is not None
    wrong = int((~torch.isfinite(exact)).sum())
    if wrong:
        return InputError(
            f"The checkpoint's {name} has {wrong} numbers that are infinite or not a number, so every picture would be "
            "noise; mend the checkpoint, or take an earlier one."
        )
    largest = exact.abs().max().item()
    return InputError(
        f"The checkpoint's {name} has numbers up to {largest:.4g}, which {dtype} can't hold "
        f"(up to {torch.finfo(torch_dtype(dtype)).max:.4g}); build with --dtype bf16 or fp32."
    )
