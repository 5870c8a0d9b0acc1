"""The TensorRT plugin in Python: the same name, version, namespace and fields as the C++ one in cpp/.

An engine built with one is read by the other. TensorRT's classes are made for the library that is given, because
TensorRT and TensorRT-RTX are modules of their own: what they do stands in classes without a library, to which
`plugin_creator` gives one's interfaces as bases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from accelaes_export.plugins.sparse_query_attention import NAME, NAMESPACE, VERSION
from accelaes_export.plugins.sparse_query_attention.cubins import Cubin
from accelaes_export.plugins.sparse_query_attention.driver import Driver
from accelaes_export.plugins.sparse_query_attention.errors import MissingError
from accelaes_export.plugins.sparse_query_attention.launching import Sizes, scratch_bytes
from accelaes_export.plugins.sparse_query_attention.tiles import HEAD_DIMS

INPUTS = 5  # q, k, v, k_bg, v_bg; a bias is the sixth
SCALE, TILE = "scale", "tile"
"""The fields: a float32, and an int32 with the chosen tile's code (0: the table's choice on the GPU it runs on)."""


def plugin_creator(trt: Any, find_driver: Callable[[], Driver] = Driver.load) -> Any:
    """An IPluginCreatorV3One of the library `trt`, to be registered and kept.

    Args:
        find_driver: called when a GPU is first needed, to run or to time kernels; all layers share what it returns.
    """
    shared = cache(find_driver)
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class SparseQueryAttention(AttentionLayer, *bases):  # type: ignore[misc]
        library, interfaces, find_driver = trt, bases, staticmethod(shared)

    class SparseQueryAttentionCreator(LayerCreator, trt.IPluginCreatorV3One):
        library, interfaces, layer = trt, (trt.IPluginCreatorV3One,), SparseQueryAttention

    return SparseQueryAttentionCreator()


class AttentionLayer:
    """One attention layer, as IPluginV3 and its three capabilities ask for it.

    Attributes:
        library: TensorRT's module.
        interfaces: the bases of the library, each of which wants to be initialised.
        find_driver: asked when a GPU is first needed.
    """

    library: ClassVar[Any]
    interfaces: ClassVar[tuple[Any, ...]]
    find_driver: ClassVar[Any]  # () -> Driver

    def __init__(self, scale: float, tile: int) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.num_outputs = 1
        self.scale, self.tile = scale, tile
        self._driver: Driver | None = None
        self._cubin: Cubin | None = None
        self._sizes: Sizes | None = None
        self._kind: tuple[str, int, bool] | None = None  # dtype, head size, whether there is a bias

    def get_capability_interface(self, type: Any) -> Any:
        return self

    def clone(self) -> Any:
        copy = type(self)(self.scale, self.tile)
        copy._kind = self._kind
        return copy

    # building

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        return [input_types[0]]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprBuilder: Any) -> list[Any]:
        return [self.library.DimsExprs(inputs[0])]

    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        if num_inputs not in (INPUTS, INPUTS + 1):
            return False
        described = in_out[pos].desc
        return (
            described.format == self.library.TensorFormat.LINEAR
            and described.type in self._dtypes()
            and described.type == in_out[0].desc.type
        )

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        head_dim = inputs[0].desc.dims[3]
        if head_dim not in HEAD_DIMS:
            raise ValueError(f"The attention kernel takes head sizes from 32 to 256 in steps of 8, not {head_dim}.")
        self._kind = (self._dtypes()[inputs[0].desc.type], head_dim, len(inputs) > INPUTS)

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        B, H, nq, _ = inputs[0].max
        return scratch_bytes(B, H, nq)

    def get_valid_tactics(self) -> list[int]:
        """Tiles worth timing on this machine's GPU; without one, or one compiled for, the table chooses later."""
        if self._kind is None:
            return []
        try:
            return [cubin.kernel.tile.code for cubin in self._on_device().candidates(*self._kind)]
        except MissingError:
            return []

    # running

    def set_tactic(self, tactic: int) -> None:
        if tactic:
            self.tile = tactic
            self._cubin = None

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._sizes = Sizes.of([described.dims for described in inputs])
        kind = (self._dtypes()[inputs[0].type], self._sizes.head_dim, self._sizes.bias is not None)
        if kind != self._kind:
            self._kind, self._cubin = kind, None

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        if self._sizes is None or self._kind is None:
            self.on_shape_change(input_desc, output_desc)
        assert self._sizes is not None and self._kind is not None
        driver = self._on_device()
        if self._cubin is None:
            self._cubin = driver.choose(*self._kind, self.tile)
        bias = inputs[INPUTS] if len(inputs) > INPUTS else 0
        pointers = [*inputs[:INPUTS], bias, outputs[0]]
        driver.launch(self._cubin, self._sizes, self.scale, pointers, workspace, stream)

    def attach_to_context(self, resource_context: Any) -> Any:
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        # Of arrays, which TensorRT counts in elements: it would take the four bytes of a number for four numbers.
        # They are kept, because fields only point at them.
        self._serialized = (np.array([self.scale], np.float32), np.array([self.tile], np.int32))
        return _fields(self.library, *self._serialized)

    def _on_device(self) -> Driver:
        if self._driver is None:
            self._driver = type(self).find_driver()
        return self._driver

    def _dtypes(self) -> dict[Any, str]:
        return {self.library.DataType.HALF: "fp16", self.library.DataType.BF16: "bf16"}


class LayerCreator:
    """Makes layers from an ONNX node's attributes or from an engine's fields: both have the same names.

    Attributes:
        library, interfaces: as a layer's.
        layer: the class it makes.
    """

    library: ClassVar[Any]
    interfaces: ClassVar[tuple[Any, ...]]
    layer: ClassVar[type[Any]]

    def __init__(self) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.field_names = _fields(self.library, b"", b"")

    def create_plugin(self, name: str, fc: Any, phase: Any) -> Any:
        given = {field.name: bytes(field.data) for field in fc}
        if SCALE not in given:
            raise ValueError(f"The attention layer {name!r} has no attribute {SCALE!r}.")
        scale = np.frombuffer(given[SCALE], np.float32, 1)[0]
        tile = np.frombuffer(given.get(TILE, bytes(4)), np.int32, 1)[0]
        return self.layer(float(scale), int(tile))


def _fields(trt: Any, scale: Any, tile: Any) -> Any:
    """The plugin's two fields."""
    return trt.PluginFieldCollection(
        [
            trt.PluginField(SCALE, scale, trt.PluginFieldType.FLOAT32),
            trt.PluginField(TILE, tile, trt.PluginFieldType.INT32),
        ]
    )
