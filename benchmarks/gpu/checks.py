"""Is an engine right on this device? Written down line by line, so that a stop leaves what was found.

Every bucket against the model in fp32 on the same device; on a GPU also graph replays with new numbers at the same
addresses against plain calls, bit for bit; a host that never waits; and what graphs keep of the memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from accelaes_export.backends.base import Session
from accelaes_export.backends.workspace import Workspace
from accelaes_export.building.verification import compare, source_model
from accelaes_export.bundle.reading import Bundle, open_bundle
from accelaes_export.measure.profiling.buckets import StepTensors, step_tensors

_TURNS = 5
"""Replays of every bucket, each with other numbers."""


class Checks:
    """The checks of one bundle.

    Args:
        bundle: opened; its session may be used.
        keep: is given everything found so far, as JSON, after every check.
    """

    def __init__(self, bundle: Bundle, keep: Callable[[str], None]) -> None:
        self._bundle, self._keep = bundle, keep
        self._began = time.monotonic()
        self._facts: dict[str, Any] = {"model": bundle.manifest.model, "wrong": [], "finished": False}

    def carry_out(self) -> None:
        """All of them."""
        session, manifest = self._bundle.session(), self._bundle.manifest
        self._found(device=str(session.device), layers=manifest.layers, dtype=manifest.geometry.contract.dtype)
        self._parity(session)
        if session.device.type == "cuda":
            plain = open_bundle(self._bundle.path, check_hashes=False, cuda_graphs=False, allow_code=True).session()
            self._replays(session, plain)
        self._found(finished=True)

    def _found(self, **facts: Any) -> None:
        self._facts |= facts
        self._facts["seconds"] = round(time.monotonic() - self._began, 1)
        self._keep(json.dumps(self._facts, indent=1))
        print(json.dumps(facts), flush=True)

    def _wrong(self, said: str) -> None:
        self._facts["wrong"].append(said)
        self._found()
        print(f"WRONG: {said}", flush=True)

    def _parity(self, session: Session) -> None:
        manifest = self._bundle.manifest
        model = source_model(manifest)
        results = compare(session, manifest, manifest.geometry, model, lambda share, what: self._found(compared=what))
        self._found(parity=[result.model_dump() for result in results])
        for result in results:
            if not result.passed:
                self._wrong(f"n = {result.bucket} differs from the {result.reference} by {result.errors}")

    def _replays(self, graphed: Session, plain: Session) -> None:
        """Every bucket from a graph, its numbers changed in place between the calls."""
        device, contract = graphed.device, graphed.contract
        before, replays = torch.cuda.memory_reserved(device), []
        for n in contract.buckets:
            place, tensors = Workspace(contract.rows, device), step_tensors(graphed, n)
            expected = {name: torch.empty_like(tensor) for name, tensor in tensors.outputs.items()}
            for turn in range(_TURNS):
                equal, waits = self._turn(graphed, plain, tensors, expected, place, watched=turn >= 2)
                if not equal or waits:
                    self._wrong(f"n = {n}, call {turn}: {'equal' if equal else 'other outputs'}; {waits or 'no wait'}")
                for tensor in tensors.inputs.values():
                    if tensor.is_floating_point():
                        tensor.copy_(0.99 * tensor.roll(1, 0))
            replays.append({"n": n, "captures": place.captures, "replays": place.replays})
            if (place.captures, place.replays) != (1, _TURNS - 1):
                self._wrong(f"n = {n}: {place.captures} captures and {place.replays} replays in {_TURNS} calls")
        kept = torch.cuda.memory_reserved(device) - before
        self._found(replays=replays, kept_bytes=kept, peak_bytes=torch.cuda.max_memory_reserved(device))

    @staticmethod
    def _turn(
        graphed: Session,
        plain: Session,
        tensors: StepTensors,
        expected: dict[str, torch.Tensor],
        place: Workspace,
        *,
        watched: bool,
    ) -> tuple[bool, str]:
        """One call of both: whether their outputs are equal, and what made the host wait."""
        plain.run(tensors.inputs, expected)
        for tensor in tensors.outputs.values():
            tensor.fill_(float("nan"))
        waited = ""
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            graphed.run(tensors.inputs, tensors.outputs, place)
        except RuntimeError as error:
            waited = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return all(torch.equal(tensors.outputs[name], expected[name]) for name in expected), waited
