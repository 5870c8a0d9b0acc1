"""Sparse-query / global-KV attention: `accelaes::SparseQueryAttention` as a kernel of its own.

softmax(scale · q · [k; k_bg]ᵀ + bias) · [v; v_bg]. Both segments are read where they lie: nothing is concatenated.

    kernel.py             the Triton kernel
    tiles.py, tiles.json  how it is cut, for every architecture
    torch_op.py           launched on torch tensors
    torch_operator.py     torch's operator `accelaes::sparse_query_attention`
    compiling.py          compiled ahead of time, without a GPU
    cubins.py             the file that carries what was compiled
    tensorrt_plugin.py    the TensorRT plugin in Python
    registration.py       plugins found by a TensorRT library
    cpp/                  the same plugin as a shared library

Importing this loads neither torch, triton nor TensorRT.
"""

from __future__ import annotations

NAME = "SparseQueryAttention"
VERSION = "1"
NAMESPACE = ""
"""TensorRT's ONNX parser looks for a node's plugin here, unless the node says otherwise; ours say nothing."""
