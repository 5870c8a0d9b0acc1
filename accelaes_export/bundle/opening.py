"""A bundle's engines and graphs, opened by the backend that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import BackendRecord
from accelaes_export.contract.presets import GraphRecord, Preset
from accelaes_export.contract.tensors import NEW

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.base import Session
    from accelaes_export.backends.graphs import OpenedGraph
    from accelaes_export.contract.tensors import GraphContract


def open_engines(
    record: BackendRecord, geometry: Geometry, folders: Mapping[str, Path], *, cuda_graphs: bool = True
) -> Session:
    """A session of all the engines of one size.

    Args:
        record: of the backend that made them.
        folders: where each engine's files are, by its folder in the bundle, "" for the focus step's.
        cuda_graphs: see `open_bundle`.

    Raises:
        BundleError, MissingComponentError: as `Backend.open`.
    """
    from accelaes_export.backends import backend
    from accelaes_export.backends.joined import joined

    def opened(folder: str, contract: GraphContract, files: tuple[str, ...]) -> Session:
        return backend(record.name).open(
            folders[folder],
            contract,
            files,
            versions=record.versions,
            targets=record.targets,
            cuda_graphs=cuda_graphs,
        )

    full = opened("", geometry.contract, record.files)
    return joined(full, [opened(engine.folder, engine.contract, engine.files) for engine in geometry.beside])


def open_programs(
    record: BackendRecord, preset: Preset, located: Callable[[str], Path], device: torch.device
) -> dict[str, OpenedGraph]:
    """A preset's programs by name, whose new state has the names of the old.

    Args:
        record: of the backend that made them.
        located: where a file of the bundle is, by its name in it.
        device: the engine's.

    Raises:
        BundleError, MissingComponentError: as `Backend.open`.
    """

    def opened(graph: GraphRecord) -> OpenedGraph:
        run = open_graph(record, graph, located, device)
        return lambda tensors: {name.removesuffix(NEW): tensor for name, tensor in run(tensors).items()}

    return {name: opened(graph) for name, graph in preset.programs.items()}


def open_graph(
    record: BackendRecord, graph: GraphRecord, located: Callable[[str], Path], device: torch.device
) -> OpenedGraph:
    """A graph beside the focus step; the arguments and errors of `open_programs`."""
    from accelaes_export.backends import backend

    return backend(record.name).open_graph(tuple(map(located, graph.files)), graph.inputs, graph.outputs, device)
