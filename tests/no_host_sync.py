"""A mode in which nothing may make the host wait for the device."""

from __future__ import annotations

import torch

_WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"})


class NoHostSync(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on every operation that would make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in _WAITING, func
        return func(*args, **(kwargs or {}))
