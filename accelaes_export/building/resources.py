"""What a build will take of disk and memory, estimated before it starts, so that it fails early or not for that."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelaes_export.errors import BuildError
from accelaes_export.progress import BuildProgress

# Measured on full-size builds (docs/benchmarks.md), rounded up. Tracing and exporting read large weights one at a time.
_PROCESS_BYTES = 1_500_000_000
_TRACING_BYTES = 1_200_000_000
_ENGINE_MARGIN = 50_000_000  # graphs, profiles and kernels beside the weights


@dataclass(frozen=True)
class Needs:
    """Bytes a build takes: on disk for its stages and bundle, in memory at its peak."""

    disk: int
    memory: int

    @classmethod
    def of_build(
        cls,
        engines: Sequence[int],
        copies: float,
        *,
        exports: Sequence[bool],
        components: Sequence[int] = (),
        component_copies: float = 0,
    ) -> Needs:
        """For engines and components with so many bytes of weights each, made one after the other.

        Args:
            copies: how many times the compiler holds an engine's (Backend.weight_copies), `component_copies` a
                component's.
            exports: which engines need an ONNX stage; False where the backend needs none, or it is there already.
        """
        # The exported graph, and the engine or the weights beside it; the bundle links them.
        disk = sum((2 if exported else 1) * size for size, exported in zip(engines, exports, strict=True))
        disk += 2 * sum(components)
        held = max(copies * max(engines), component_copies * max(components, default=0))
        memory = max(_TRACING_BYTES, int(held)) + _PROCESS_BYTES
        return cls(disk + len(engines) * _ENGINE_MARGIN, memory)


def require(needs: Needs, folder: Path, progress: BuildProgress) -> None:
    """Report the estimate and raise BuildError where disk or memory fall short of it."""
    import psutil

    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free_disk = shutil.disk_usage(existing).free
    free_memory = psutil.virtual_memory().available
    progress.estimate(needs.disk, needs.memory, free_disk, free_memory)
    if needs.disk > free_disk:
        raise BuildError(
            f"The build needs about {needs.disk / 1e9:.1f} GB of disk and {existing} has {free_disk / 1e9:.1f} GB "
            "free; free some, or choose another folder with -o."
        )
    if needs.memory > free_memory:
        raise BuildError(
            f"The build needs about {needs.memory / 1e9:.1f} GB of memory and {free_memory / 1e9:.1f} GB are free; "
            "close other programs, leave a TensorRT engine's weights beside it (--weights inputs), or take a larger "
            "machine."
        )
