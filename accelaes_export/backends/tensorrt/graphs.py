"""Small graphs beside the focus step in TensorRT: an engine each, with one profile."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.cuda import Cuda
from accelaes_export.backends.graphs import GraphRequest, GraphTensors
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.messages import one_line
from accelaes_export.backends.tensorrt.preparation import Wanted, prepare
from accelaes_export.backends.tensorrt.session import ADDRESS_ALIGNMENT
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import AccelAesError, BuildError, BundleError

if TYPE_CHECKING:
    import torch


def build_graph(library: Library, request: GraphRequest, targets: tuple[str, ...]) -> str:
    """Write the engine into the request's destination; its file name.

    Args:
        targets: compute capabilities, as the focus step's engine was built for.

    Raises:
        BuildError: with TensorRT's own words.
    """
    trt, flavour = library.trt, library.flavour
    library.messages.clear()
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    path = str(request.onnx_file)
    prepared = prepare(request.onnx_file, Wanted(request.outputs[0].dtype, flavour)).graph
    if not (parser.parse_from_file(path) if prepared is None else parser.parse(prepared, path)):
        said = "; ".join(one_line(parser.get_error(k).desc()) for k in range(parser.num_errors))
        raise BuildError(f"{flavour.name} can't read {request.name}: {said or library.messages.quote()}.")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    least, most = request.least, dict(request.largest)
    for spec in request.inputs:
        if any(isinstance(d, str) for d in spec.shape):
            profile.set_shape(spec.name, spec.sized(least), spec.sized(most), spec.sized(most))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"{flavour.name} refused the profile of {request.name}: {library.messages.quote()}.")
    flavour.aim(trt, config, targets)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"{flavour.name} could not build {request.name}: {library.messages.quote()}.")
    written = request.destination / f"{request.name}.engine"
    written.write_bytes(engine)
    return written.name


class TensorRTGraph:
    """A graph beside the focus step; see `OpenedGraph`. It is enqueued on torch's current stream.

    Args:
        engine: the deserialised ICudaEngine, of one profile.
        inputs, outputs: its tensors.
    """

    def __init__(
        self,
        library: Library,
        engine: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        cuda: Cuda,
    ) -> None:
        self._name, self._messages, self._cuda = library.flavour.name, library.messages, cuda
        self._tensors = GraphTensors(inputs, outputs, cuda.device)
        self._context = engine.create_execution_context()
        self._lock = threading.Lock()

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = {
            name: tensor.clone() if tensor.data_ptr() % ADDRESS_ALIGNMENT else tensor  # some rows of a tensor
            for name, tensor in self._tensors.given(tensors).items()
        }
        outputs = self._tensors.room(inputs)
        with self._lock, self._cuda.current(), self._cuda.stream() as stream:
            for name, tensor in inputs.items():
                self._accept(self._context.set_input_shape(name, tuple(tensor.shape)), f"the shape of {name!r}")
            for name, tensor in (*inputs.items(), *outputs.items()):
                self._accept(self._context.set_tensor_address(name, tensor.data_ptr()), f"the address of {name!r}")
            self._accept(self._context.execute_async_v3(stream.cuda_stream), "a graph beside the focus step")
        return outputs

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise AccelAesError(f"{self._name} refused {what}: {self._messages.quote()}.")


def open_graph(
    library: Library,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    cuda: Cuda,
) -> TensorRTGraph:
    """Deserialise a graph's engine on `cuda`.

    Raises:
        BundleError: it can't be opened here, or has other tensors.
    """
    with cuda.current():
        engine = library.trt.Runtime(library.logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(
            f"{library.flavour.name} can't open {path.name}: {library.messages.quote()}. Build the bundle again."
        )
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    different = found ^ {spec.name for spec in (*inputs, *outputs)}
    if different:
        raise BundleError(
            f"The tensors of {path.name} differ from the manifest in {', '.join(sorted(different)[:6])}; build the "
            "bundle again."
        )
    return TensorRTGraph(library, engine, inputs, outputs, cuda)
