"""From an ONNX focus step to a serialised engine: parse, one profile per bucket, build, write."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

from accelaes_export.backends.base import CompileRequest, Progress
from accelaes_export.backends.onnx_files import external_files, read_graph
from accelaes_export.backends.tensorrt.attention_plugin import check_layers
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.messages import one_line
from accelaes_export.backends.tensorrt.network_weights import write_weights
from accelaes_export.backends.tensorrt.preparation import Wanted, prepare
from accelaes_export.backends.tensorrt.profiles import profiles
from accelaes_export.backends.tensorrt.progress import EngineProgress, tensorrt_monitor
from accelaes_export.backends.tensorrt.writing import file_writer
from accelaes_export.backends.weights_file import WEIGHTS_FILE
from accelaes_export.errors import BuildError
from accelaes_export.memory import dropping_mapped

ENGINE_FILE = "focus_step.engine"


class EngineBuild:
    """One build. Everything TensorRT needs to outlive it (network, config, monitor) is held here.

    Args:
        targets: compute capabilities, `NATIVE` already replaced by what it stands for.
    """

    def __init__(self, library: Library, request: CompileRequest, targets: tuple[str, ...]) -> None:
        trt, logger = library.trt, library.logger
        self._trt, self._flavour, self._messages = trt, library.flavour, library.messages
        self._request, self._targets = request, targets
        self._builder = trt.Builder(logger)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self._network, logger)
        if request.attention == "plugin":
            self._parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)  # over the function of the same name
        self._config = self._builder.create_builder_config()
        self._weights: frozenset[str] = frozenset()  # those that are inputs of the network

    def run(self, progress: Progress) -> tuple[str, ...]:
        """Write the engine into the request's destination and return notes for the manifest.

        Raises BuildError with TensorRT's own words, and KeyboardInterrupt, once the builder has stopped, for a
        build that was interrupted.
        """
        self._messages.clear()
        profiles(self._request.contract)  # an impossible contract is refused before gigabytes are read
        progress("read ONNX", None)
        notes = self._parse()
        self._configure()
        if self._weights:
            progress("write weights", None)
            write_weights(self._request.onnx_file, self._weights, self._request.destination / WEIGHTS_FILE)
            notes = (*notes, f"{len(self._weights)} weights are inputs of the engine, bound from {WEIGHTS_FILE}")
        progress("build engine", 0.0)
        onnx = self._request.onnx_file
        weights = [onnx.parent / name for name in external_files(read_graph(onnx))]
        path = self._request.destination / ENGINE_FILE
        try:
            with dropping_mapped(weights), path.open("wb") as file:
                self._build(file, progress)
        except BaseException:
            path.unlink(missing_ok=True)  # no half an engine, also after Ctrl-C
            raise
        self._write_timing_cache()
        return notes

    def _parse(self) -> tuple[str, ...]:
        request = self._request
        wanted = Wanted(
            request.contract.dtype,
            self._flavour,
            weights_as_inputs=request.weights == "inputs",
            for_plugin=request.attention == "plugin",
        )
        prepared = prepare(request.onnx_file, wanted)
        graph, notes, self._weights = prepared.graph, prepared.notes, prepared.weights
        path = str(request.onnx_file)
        if not (self._parser.parse_from_file(path) if graph is None else self._parser.parse(graph, path)):
            raise BuildError(f"{self._flavour.name} can't read {request.onnx_file.name}: {self._parser_errors()}.")
        found = {self._network.get_input(i).name for i in range(self._network.num_inputs)}
        named = {spec.name for spec in request.contract.inputs} | self._weights
        if found != named:
            raise BuildError(
                f"The inputs of {request.onnx_file.name} differ from its contract in "
                f"{', '.join(sorted(found ^ named))}; export it again."
            )
        if request.attention == "plugin":
            notes = (*notes, check_layers(self._trt, self._network, request.onnx_file.name))
        return notes

    def _parser_errors(self) -> str:
        found = []
        for error in (self._parser.get_error(i) for i in range(self._parser.num_errors)):
            where = f"{error.node_operator()} node {error.node_name()!r}: " if error.node_operator() else ""
            found.append(where + one_line(error.desc()))
        return "; ".join(found) or self._messages.quote()

    def _configure(self) -> None:
        trt, config = self._trt, self._config
        for profile in profiles(self._request.contract):
            made = self._builder.create_optimization_profile()
            for name, (least, typical, most) in profile.ranges.items():
                made.set_shape(name, least, typical, most)
            if config.add_optimization_profile(made) < 0:
                raise BuildError(
                    f"{self._flavour.name} refused the profile of bucket {profile.n}: {self._messages.quote()}."
                )
        if self._request.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._request.workspace_bytes)
        self._flavour.aim(trt, config, self._targets)
        self._read_timing_cache()

    def _build(self, file: BinaryIO, progress: Progress) -> None:
        """Build the engine into `file`, on a thread of its own; it never stands in memory whole.

        Python delivers Ctrl-C to the main thread only, and an exception must not unwind through TensorRT's
        frames: so the caller's thread waits, and an interrupt becomes a "stop" at the builder's next step.
        """
        state = EngineProgress(progress)
        self._config.progress_monitor = tensorrt_monitor(self._trt, state)
        writer = file_writer(self._trt, file)
        built: list[bool] = []
        failed: list[Exception] = []

        def build() -> None:
            try:
                built.append(self._builder.build_serialized_network_to_stream(self._network, self._config, writer))
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=build, name=f"{self._flavour.name} build")
        thread.start()
        interrupted: KeyboardInterrupt | None = None
        while thread.is_alive():
            try:
                thread.join(0.2)
            except KeyboardInterrupt as error:
                interrupted = error
                state.stop()
        if interrupted or state.error:
            raise interrupted or state.error  # type: ignore[misc]
        if writer.error is not None:
            raise writer.error
        if failed or not built or not built[0]:
            said = one_line(str(failed[0])) if failed else self._messages.quote()
            raise BuildError(f"{self._flavour.name} could not build the engine for {', '.join(self._targets)}: {said}.")

    def _read_timing_cache(self) -> None:
        file = self._request.timing_cache
        if file is None or not self._flavour.timing_cache:
            return
        cache = self._config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if not self._config.set_timing_cache(cache, ignore_mismatch=False):
            # Timings of another GPU or version: start afresh, the old file is replaced at the end.
            self._config.set_timing_cache(self._config.create_timing_cache(b""), ignore_mismatch=False)

    def _write_timing_cache(self) -> None:
        file = self._request.timing_cache
        if file is None or not self._flavour.timing_cache:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(f"{file}.{os.getpid()}")
        fresh.write_bytes(self._config.get_timing_cache().serialize())
        fresh.replace(file)
