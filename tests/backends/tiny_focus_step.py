"""A two-layer joint-attention focus step small enough to build in seconds, with a float64 reference of its own.

It keeps the graph's contract (gather at focus_index, cached background keys and values, affinity, conditioning,
`accelaes::SparseQueryAttention` as a model-local function) and owes nothing to diffusers or to the exporter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from accelaes_export.contract.tensors import CacheEntry, DTypeName, GraphContract, TensorSpec

CHANNELS, SIDE, PATCH = 4, 8, 2
TOKENS = (SIDE // PATCH) ** 2  # N = 16
TEXT, TEXT_WIDTH, POOLED = 6, 24, 10
HEADS, HEAD_DIM, LAYERS = 2, 32, 2
WIDTH = HEADS * HEAD_DIM
PATCH_WIDTH = PATCH * PATCH * CHANNELS
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int64": torch.int64}
_ONNX_DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TEXT_TYPES = {"fp32": "float", "fp16": "float16", "bf16": "bfloat16", "int64": "int64"}


def contract(
    dtype: DTypeName = "fp32",
    *,
    batch: int = 1,
    buckets: tuple[int, ...] = (4, 8, 12, 16),
    dynamic_text: bool = True,
) -> GraphContract:
    M: int | str = "M" if dynamic_text else TEXT
    cache = tuple(
        CacheEntry(name=f"cache.{layer}.{kind}", heads=HEADS, head_dim=HEAD_DIM)
        for layer in range(LAYERS)
        for kind in "kv"
    )
    specs = lambda rows: tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in rows)  # noqa: E731
    return GraphContract(
        dtype=dtype,
        batch=batch,
        tokens=TOKENS,
        buckets=buckets,
        text_tokens=TEXT,
        dynamic_text=dynamic_text,
        conditioning=("encoder_hidden_states", "pooled_projections"),
        inputs=specs(
            [
                ("hidden_states", dtype, ("B", CHANNELS, SIDE, SIDE)),
                ("timestep", dtype, ("B",)),
                ("encoder_hidden_states", dtype, ("B", M, TEXT_WIDTH)),
                ("pooled_projections", dtype, ("B", POOLED)),
                ("focus_index", "int64", ("B", "n")),
                ("token_weights", "fp32", ("B", M)),
                *((f"{entry.name}_bg", dtype, ("B", HEADS, "m", HEAD_DIM)) for entry in cache),
            ]
        ),
        outputs=specs(
            [
                ("focus_prediction", dtype, ("B", "n", PATCH_WIDTH)),
                ("affinity", "fp32", ("B", "n")),
                *((entry.name, dtype, ("B", HEADS, "n", HEAD_DIM)) for entry in cache),
            ]
        ),
        cache=cache,
    )


def weights() -> dict[str, np.ndarray]:
    """The float64 weights, the same at every call."""
    draw = np.random.default_rng(7)
    shapes = {
        "patch_embed": (PATCH_WIDTH, WIDTH),
        "positions": (1, TOKENS, WIDTH),
        "text_embed": (TEXT_WIDTH, WIDTH),
        "time_embed": (1, 1, WIDTH),
        "pool_embed": (POOLED, WIDTH),
        "head": (WIDTH, PATCH_WIDTH),
    }
    for layer in range(LAYERS):
        shapes |= {f"{name}{layer}": (WIDTH, WIDTH) for name in ("q", "k", "v", "tq", "tk", "tv", "out")}
    return {name: draw.normal(0, shape[0] ** -0.5 if len(shape) == 2 else 0.3, shape) for name, shape in shapes.items()}


_FUNCTION = """
<domain: "accelaes", opset_import: ["" : 23]>
SparseQueryAttention <scale> (q, k, v, k_bg, v_bg) => (out)
{
   keys = Concat <axis = 2> (k, k_bg)
   values = Concat <axis = 2> (v, v_bg)
   out = Attention <scale: float = @scale> (q, keys, values)
}
"""

_LAYER = """
   qx{l} = MatMul(x{l}, q{l})
   kx{l} = MatMul(x{l}, k{l})
   vx{l} = MatMul(x{l}, v{l})
   qt{l} = MatMul(text, tq{l})
   kt{l} = MatMul(text, tk{l})
   vt{l} = MatMul(text, tv{l})
   qxs{l} = Reshape(qx{l}, split_heads)
   kxs{l} = Reshape(kx{l}, split_heads)
   vxs{l} = Reshape(vx{l}, split_heads)
   qts{l} = Reshape(qt{l}, split_heads)
   kts{l} = Reshape(kt{l}, split_heads)
   vts{l} = Reshape(vt{l}, split_heads)
   qxh{l} = Transpose <perm = [0, 2, 1, 3]> (qxs{l})
   "cache.{l}.k" = Transpose <perm = [0, 2, 1, 3]> (kxs{l})
   "cache.{l}.v" = Transpose <perm = [0, 2, 1, 3]> (vxs{l})
   qth{l} = Transpose <perm = [0, 2, 1, 3]> (qts{l})
   kth{l} = Transpose <perm = [0, 2, 1, 3]> (kts{l})
   vth{l} = Transpose <perm = [0, 2, 1, 3]> (vts{l})
   queries{l} = Concat <axis = 2> (qxh{l}, qth{l})
   keys{l} = Concat <axis = 2> ("cache.{l}.k", kth{l})
   values{l} = Concat <axis = 2> ("cache.{l}.v", vth{l})
   attended{l} = accelaes.SparseQueryAttention <scale = {scale}>
      (queries{l}, keys{l}, values{l}, "cache.{l}.k_bg", "cache.{l}.v_bg")
   attended_image{l} = Slice(attended{l}, zero, n, two)
   merged_heads{l} = Transpose <perm = [0, 2, 1, 3]> (attended_image{l})
   merged{l} = Reshape(merged_heads{l}, merge_heads)
   projected{l} = MatMul(merged{l}, out{l})
   x{next} = Add(x{l}, projected{l})
   ktt{l} = Transpose <perm = [0, 1, 3, 2]> (kth{l})
   scores{l} = MatMul(qxh{l}, ktt{l})
   scores32{l} = Cast <to = 1> (scores{l})
   scaled{l} = Mul(scores32{l}, scale32)
   share{l} = Softmax <axis = 3> (scaled{l})
   weighted{l} = Mul(share{l}, weights4)
   summed{l} = ReduceSum <keepdims = 0> (weighted{l}, three)
   affinity{l} = ReduceMean <keepdims = 0> (summed{l}, one)
"""


def _graph_text(table: GraphContract) -> str:
    def declared(specs: tuple[TensorSpec, ...]) -> str:
        return ", ".join(f'{_TEXT_TYPES[s.dtype]}[{", ".join(map(str, s.shape))}] "{s.name}"' for s in specs)

    layers = "".join(_LAYER.format(l=layer, next=layer + 1, scale=HEAD_DIM**-0.5) for layer in range(LAYERS))
    return f"""
<ir_version: 11, opset_import: ["" : 23, "accelaes" : 1]>
tiny_focus_step ({declared(table.inputs)}) => ({declared(table.outputs)})
{{
   cells = Reshape(hidden_states, cells_shape)
   cells_last = Transpose <perm = [0, 2, 4, 3, 5, 1]> (cells)
   patches = Reshape(cells_last, patches_shape)
   embedded = MatMul(patches, patch_embed)
   placed = Add(embedded, positions)
   index3 = Unsqueeze(focus_index, two)
   index = Expand(index3, width_shape)
   gathered = GatherElements <axis = 1> (placed, index)
   timestep3 = Reshape(timestep, column_shape)
   timed = Mul(timestep3, time_embed)
   pooled = MatMul(pooled_projections, pool_embed)
   pooled3 = Unsqueeze(pooled, one)
   conditioned = Add(gathered, timed)
   x0 = Add(conditioned, pooled3)
   text = MatMul(encoder_hidden_states, text_embed)
   n_all = Shape <start = 1, end = 2> (focus_index)
   n = Identity(n_all)
   weights4 = Unsqueeze(token_weights, one_two)
   {layers}
   focus_prediction = MatMul(x{LAYERS}, head)
   affinity_sum = Add(affinity0, affinity1)
   affinity = Mul(affinity_sum, half)
}}
"""


def save(folder: Path, table: GraphContract, *, external: bool = False) -> Path:
    """Write the model for `table` into `folder` and return its path; `external` puts the weights beside it."""
    model = parser.parse_model(_graph_text(table))
    model.functions.append(parser.parse_function(_FUNCTION))
    kind = _ONNX_DTYPES[table.dtype]
    for name, value in weights().items():
        bits = torch.from_numpy(value).to(TORCH_DTYPES[table.dtype])
        model.graph.initializer.append(
            helper.make_tensor(name, kind, value.shape, bits.view(torch.uint8).numpy().tobytes(), raw=True)
        )
    p, side = PATCH, SIDE // PATCH
    integers = {
        "cells_shape": [0, CHANNELS, side, p, side, p],
        "patches_shape": [0, TOKENS, PATCH_WIDTH],
        "width_shape": [1, 1, WIDTH],
        "column_shape": [-1, 1, 1],
        "split_heads": [0, -1, HEADS, HEAD_DIM],
        "merge_heads": [0, -1, WIDTH],
        "one_two": [1, 2],
        **{name: [value] for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3))},
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in integers.items())
    floats = {"scale32": HEAD_DIM**-0.5, "half": 0.5}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(v), k) for k, v in floats.items())
    path = folder / "focus_step.onnx"
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location="focus_step.onnx.data",
        size_threshold=1024,
        all_tensors_to_one_file=True,
    )
    return path


def draw_inputs(
    table: GraphContract, n: int, B: int | None = None, M: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random inputs of the contract's shapes; focus_index is a random ascending choice a row."""
    generator = torch.Generator().manual_seed(seed)
    sizes = table.sizes(n, B, M)
    drawn: dict[str, torch.Tensor] = {}
    for spec in table.inputs:
        if spec.dtype == "int64":
            rows = [torch.randperm(TOKENS, generator=generator)[:n].sort().values for _ in range(sizes["B"])]
            drawn[spec.name] = torch.stack(rows)
        else:
            drawn[spec.name] = torch.randn(spec.sized(sizes), generator=generator).to(TORCH_DTYPES[spec.dtype])
    return drawn


def empty_outputs(table: GraphContract, n: int, B: int | None = None, M: int | None = None) -> dict[str, torch.Tensor]:
    """Tensors of NaN to be written, so that what an engine leaves out shows."""
    sizes = table.sizes(n, B, M)
    return {s.name: torch.full(s.sized(sizes), torch.nan, dtype=TORCH_DTYPES[s.dtype]) for s in table.outputs}


def reference(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same step in float64, one row, one head and one token at a time where that is clearest."""
    x64 = {name: t.double().numpy() if t.is_floating_point() else t.numpy() for name, t in inputs.items()}
    w, hd, p = weights(), HEAD_DIM, PATCH
    B, n = x64["focus_index"].shape
    grid = SIDE // p
    rows = []
    for b in range(B):
        image = x64["hidden_states"][b]
        tokens = [
            image[:, r * p : r * p + p, c * p : c * p + p].transpose(1, 2, 0).ravel()
            for r in range(grid)
            for c in range(grid)
        ]
        x = np.stack([tokens[i] @ w["patch_embed"] + w["positions"][0, i] for i in x64["focus_index"][b]])
        x = x + x64["timestep"][b] * w["time_embed"][0, 0] + x64["pooled_projections"][b] @ w["pool_embed"]
        text = x64["encoder_hidden_states"][b] @ w["text_embed"]
        out: dict[str, np.ndarray] = {}
        affinity = np.zeros(n)
        for layer in range(LAYERS):
            part = {
                name: source @ w[f"{name}{layer}"]
                for name, source in (("q", x), ("k", x), ("v", x), ("tq", text), ("tk", text), ("tv", text))
            }
            attended = np.empty((n, WIDTH))
            for kind in "kv":
                out[f"cache.{layer}.{kind}"] = part[kind].reshape(n, HEADS, hd).transpose(1, 0, 2)
            for h in range(HEADS):
                head = slice(h * hd, (h + 1) * hd)
                keys, values = (
                    np.concatenate([part[a][:, head], part["t" + a][:, head], x64[f"cache.{layer}.{a}_bg"][b, h]])
                    for a in "kv"
                )
                for i in range(n):
                    q = part["q"][i, head]
                    attended[i, head] = _softmax(keys @ q * hd**-0.5) @ values
                    share = _softmax(part["tk"][:, head] @ q * hd**-0.5)
                    affinity[i] += share @ x64["token_weights"][b] / (HEADS * LAYERS)
            x = x + attended @ w[f"out{layer}"]
        rows.append({"focus_prediction": x @ w["head"], "affinity": affinity, **out})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
