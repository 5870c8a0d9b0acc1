"""The TensorRT plugin in Python: the same name, version, namespace and fields as the C++ one in cpp/.

An engine built with one is read by the other. TensorRT's classes are made for the library that is given, because
TensorRT and TensorRT-RTX are modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

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
    import numpy as np

    driver = cache(find_driver)
    dtypes = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}

    class SparseQueryAttention(
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuild,
        trt.IPluginV3OneRuntime,
    ):
        """One attention layer."""

        def __init__(self, scale: float, tile: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
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
            copy = SparseQueryAttention(self.scale, self.tile)
            copy._kind = self._kind
            return copy

        # building

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprBuilder: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            if num_inputs not in (INPUTS, INPUTS + 1):
                return False
            described = in_out[pos].desc
            return (
                described.format == trt.TensorFormat.LINEAR
                and described.type in dtypes
                and described.type == in_out[0].desc.type
            )

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            head_dim = inputs[0].desc.dims[3]
            if head_dim not in HEAD_DIMS:
                raise ValueError(f"The attention kernel takes head sizes from 32 to 256 in steps of 8, not {head_dim}.")
            self._kind = (dtypes[inputs[0].desc.type], head_dim, len(inputs) > INPUTS)

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
            kind = (dtypes[inputs[0].type], self._sizes.head_dim, self._sizes.bias is not None)
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
            scale, tile = self._serialized
            return trt.PluginFieldCollection(
                [
                    trt.PluginField(SCALE, scale, trt.PluginFieldType.FLOAT32),
                    trt.PluginField(TILE, tile, trt.PluginFieldType.INT32),
                ]
            )

        def _on_device(self) -> Driver:
            if self._driver is None:
                self._driver = driver()
            return self._driver

    class Creator(trt.IPluginCreatorV3One):
        """Makes layers from an ONNX node's attributes or from an engine's fields: both have the same names."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.field_names = trt.PluginFieldCollection(
                [
                    trt.PluginField(SCALE, b"", trt.PluginFieldType.FLOAT32),
                    trt.PluginField(TILE, b"", trt.PluginFieldType.INT32),
                ]
            )

        def create_plugin(self, name: str, fc: Any, phase: Any) -> Any:
            given = {field.name: bytes(field.data) for field in fc}
            if SCALE not in given:
                raise ValueError(f"The attention layer {name!r} has no attribute {SCALE!r}.")
            scale = np.frombuffer(given[SCALE], np.float32, 1)[0]
            tile = np.frombuffer(given.get(TILE, bytes(4)), np.int32, 1)[0]
            return SparseQueryAttention(float(scale), int(tile))

    return Creator()
