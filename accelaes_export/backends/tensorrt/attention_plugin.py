"""The attention plugin in TensorRT: made known for a build, and asked for before an engine that has it is opened."""

from __future__ import annotations

from typing import Any

from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import BuildError, MissingComponentError
from accelaes_export.plugins.sparse_query_attention import NAME, VERSION
from accelaes_export.plugins.sparse_query_attention.cubins import default_pack, require_kernels
from accelaes_export.plugins.sparse_query_attention.errors import PluginError
from accelaes_export.plugins.sparse_query_attention.registration import LIBRARY_FILE, LIBRARY_VARIABLE, register
from accelaes_export.plugins.sparse_query_attention.tiles import HEAD_DIMS


class AttentionPlugin:
    """The plugin as one TensorRT library knows it; has to live as long as engines with it are built or run."""

    def __init__(self) -> None:
        self._creator: Any = None  # of the Python plugin; the C++ one is the library's own

    def load(self, trt: Any) -> None:
        """Make the plugin known to `trt`; MissingComponentError says what is in the way."""
        try:
            self._creator = register(trt) or self._creator
        except PluginError as error:
            raise MissingComponentError(f"The attention plugin can't be used: {error}") from error

    def require(self, trt: Any, contract: GraphContract, capability: str) -> None:
        """Before an engine with the plugin's layers is opened on a GPU of `capability` ("sm86").

        Raises MissingComponentError, naming the file to load, where the plugin or its kernels for it aren't there.
        """
        try:
            self._creator = register(trt) or self._creator
            if self._creator is not None:  # the C++ plugin carries its kernels with it
                sizes = {entry.head_dim for entry in contract.cache if entry.name.rsplit(".", 1)[-1].startswith("k")}
                require_kernels(default_pack(), capability, contract.dtype, sizes)
        except PluginError as error:
            raise MissingComponentError(
                f"This engine needs the attention plugin {NAME} {VERSION}: build {LIBRARY_FILE} and name it in "
                f"{LIBRARY_VARIABLE} (docs/plugin.md), or mend the Python plugin: {error}"
            ) from error


def check_layers(trt: Any, network: Any, file: str) -> str:
    """A note on the plugin's layers in a network parsed from `file`.

    Raises BuildError where there are none, and where one is of a dtype or head size that the plugin doesn't take:
    TensorRT-RTX's builder would end the process.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    queries = [layer.get_input(0) for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    head_dims = sorted({tensor.shape[3] for tensor in queries})
    problem = ""
    if not queries:
        problem = "has no attention that the plugin could take"
    elif any(tensor.dtype not in (trt.DataType.HALF, trt.DataType.BF16) for tensor in queries):
        problem = "has attention in another dtype than fp16 and bf16"
    elif not set(head_dims) <= set(HEAD_DIMS):
        problem = f"has heads of {', '.join(map(str, head_dims))}, and the plugin takes 32 to 256 in steps of 8"
    if problem:
        raise BuildError(f"{file} {problem}; build with --attention native.")
    return f"{len(queries)} attentions are plugin layers, head size {', '.join(map(str, head_dims))}"
