"""The Triton kernel: attention of focus queries over two key segments that are never joined.

One program computes BLOCK_M query rows of one head. It walks the fresh keys, then the cached background ones, and keeps
a running maximum, sum and weighted values (online softmax), all in fp32. Segments are read where they lie.

Head sizes that are no power of two are worked in two parts, the largest power of two and the rest: 72 as 64 + 16
costs 80 columns, where one padded part would cost 128.

Imports triton, so nothing else here imports it at its top. With TRITON_INTERPRET=1 set before triton is first
imported, the same code runs on CPU tensors.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(source, start, row_stride, count, FIRST: tl.constexpr, WIDTH: tl.constexpr, HD: tl.constexpr,
          BLOCK: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """Columns [FIRST, FIRST + WIDTH) of rows [start, start + BLOCK); what lies outside the tensor is 0."""
    if DESCRIPTORS:
        tile = source.load([start, FIRST])
    else:
        row = start + tl.arange(0, BLOCK)
        column = FIRST + tl.arange(0, WIDTH)
        pointers = source + row[:, None] * row_stride + column[None, :]
        if MASKED:
            tile = tl.load(pointers, mask=(row[:, None] < count) & (column[None, :] < HD), other=0.0)
        elif FIRST + WIDTH > HD:
            tile = tl.load(pointers, mask=column[None, :] < HD, other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def _tile(acc, acc_rest, total, top, q, q_rest, k, k_rest, v, v_rest, k_row, v_row, bias, bias_row,
          start, keys, query, queries, scale,
          HD: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr,
          BIASED: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """One tile of keys taken into the running softmax. MASKED: the tile reaches past the segment's end."""
    tile = _rows(k, start, k_row, keys, 0, WIDTH, HD, BLOCK_N, MASKED, DESCRIPTORS)
    scores = tl.dot(q, tl.trans(tile))
    if REST > 0:
        tile = _rows(k_rest, start, k_row, keys, WIDTH, REST, HD, BLOCK_N, MASKED, DESCRIPTORS)
        scores = tl.dot(q_rest, tl.trans(tile), scores)
    key = start + tl.arange(0, BLOCK_N)
    # exp2 is what the hardware has. The bias may be as low as bf16 goes, which times log2(e) would be -inf: with one,
    # scores stay in base e until the maximum is subtracted.
    if BIASED:
        line = tl.minimum(query, queries - 1)  # rows past the last query are computed and thrown away
        pointers = bias + line[:, None] * bias_row + key[None, :]
        added = tl.load(pointers, mask=key[None, :] < keys, other=0.0) if MASKED else tl.load(pointers)
        scores = scores * scale + added.to(tl.float32)
    else:
        scores = scores * (scale * LOG2E)
    if MASKED:
        scores = tl.where(key[None, :] < keys, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen only -inf has no maximum to subtract.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    if BIASED:
        p = tl.math.exp2((scores - shift[:, None]) * LOG2E)
        decay = tl.math.exp2((top - shift) * LOG2E)
    else:
        p = tl.math.exp2(scores - shift[:, None])
        decay = tl.math.exp2(top - shift)
    total = total * decay + tl.sum(p, 1)
    tile = _rows(v, start, v_row, keys, 0, WIDTH, HD, BLOCK_N, MASKED, DESCRIPTORS)
    p = p.to(tile.dtype)
    acc = tl.dot(p, tile, acc * decay[:, None])
    if REST > 0:
        tile = _rows(v_rest, start, v_row, keys, WIDTH, REST, HD, BLOCK_N, MASKED, DESCRIPTORS)
        acc_rest = tl.dot(p, tile, acc_rest * decay[:, None])
    return acc, acc_rest, total, higher


@triton.jit
def _segment(acc, acc_rest, total, top, q, q_rest, k_base, v_base, k_row, v_row, bias, bias_row,
             keys, query, queries, scale,
             HD: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr,
             BIASED: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """All keys of one segment: whole tiles without a mask, then the one that reaches past its end."""
    if DESCRIPTORS:
        # A segment without keys still needs a descriptor of at least one row; it is never read through.
        rows = tl.maximum(keys, 1)
        k = tl.make_tensor_descriptor(k_base, [rows, HD], [k_row, 1], [BLOCK_N, WIDTH])
        v = tl.make_tensor_descriptor(v_base, [rows, HD], [v_row, 1], [BLOCK_N, WIDTH])
        k_rest, v_rest = k, v
        if REST > 0:
            k_rest = tl.make_tensor_descriptor(k_base, [rows, HD], [k_row, 1], [BLOCK_N, REST])
            v_rest = tl.make_tensor_descriptor(v_base, [rows, HD], [v_row, 1], [BLOCK_N, REST])
    else:
        k, v, k_rest, v_rest = k_base, v_base, k_base, v_base
    whole = keys // BLOCK_N * BLOCK_N
    for start in tl.range(0, whole, BLOCK_N):
        acc, acc_rest, total, top = _tile(
            acc, acc_rest, total, top, q, q_rest, k, k_rest, v, v_rest, k_row, v_row, bias, bias_row,
            start, keys, query, queries, scale, HD, WIDTH, REST, BLOCK_N, BIASED, False, DESCRIPTORS)  # fmt: skip
    for start in tl.range(whole, keys, BLOCK_N, num_stages=1):  # once, or not at all
        acc, acc_rest, total, top = _tile(
            acc, acc_rest, total, top, q, q_rest, k, k_rest, v, v_rest, k_row, v_row, bias, bias_row,
            start, keys, query, queries, scale, HD, WIDTH, REST, BLOCK_N, BIASED, True, DESCRIPTORS)  # fmt: skip
    return acc, acc_rest, total, top


# A size of 1, or one divisible by 16, is no other kernel.
@triton.jit(do_not_specialize=("queries", "keys", "background", "group"))
def attention(q, k, v, k_bg, v_bg, bias, out, scale, queries, keys, background, group,
              q_batch, q_head, k_batch, k_head, v_batch, v_head, kb_batch, kb_head, vb_batch, vb_head,
              out_batch, out_head, bias_batch, bias_row,
              q_row, k_row, v_row, kb_row, vb_row, out_row,
              HD: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
              BIASED: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """softmax(scale · q · [k; k_bg]ᵀ + bias) · [v; v_bg] on a grid of (tiles of queries, H, B).

    Args:
        q, out: [B, H, queries, HD]; k, v: [B, H / group, keys, HD]; k_bg, v_bg: [B, H / group, background, HD].
            Strides are in elements, of batch rows, heads and rows; a row's elements lie side by side.
        bias: [B, 1, queries, keys + background], a stride of 0 where it is the same for all rows or queries.
        WIDTH, REST: the two parts that HD is worked in; REST 0 for one part.
        DESCRIPTORS: read keys and values through tensor descriptors (TMA, from sm_90 on).

    A row whose every score is -inf gives zeros, as torch's attention does.
    """
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    kv_head = head // group
    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + kv_head * k_head
    v += batch * v_batch + kv_head * v_head
    k_bg += batch * kb_batch + kv_head * kb_head
    v_bg += batch * vb_batch + kv_head * vb_head
    out += batch * out_batch + head * out_head
    if BIASED:
        bias += batch * bias_batch

    first = tl.program_id(0) * BLOCK_M
    q_main = _rows(q, first, q_row, queries, 0, WIDTH, HD, BLOCK_M, True, False)
    q_rest = q_main
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    acc_rest = acc
    if REST > 0:
        q_rest = _rows(q, first, q_row, queries, WIDTH, REST, HD, BLOCK_M, True, False)
        acc_rest = tl.zeros([BLOCK_M, REST], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc, acc_rest, total, top = _segment(
        acc, acc_rest, total, top, q_main, q_rest, k, v, k_row, v_row, bias, bias_row,
        keys, query, queries, scale, HD, WIDTH, REST, BLOCK_N, BIASED, DESCRIPTORS)  # fmt: skip
    acc, acc_rest, total, top = _segment(
        acc, acc_rest, total, top, q_main, q_rest, k_bg, v_bg, kb_row, vb_row, bias + keys, bias_row,
        background, query, queries, scale, HD, WIDTH, REST, BLOCK_N, BIASED, DESCRIPTORS)  # fmt: skip

    total = tl.where(total == 0.0, 1.0, total)
    column = tl.arange(0, WIDTH)
    inside = (query[:, None] < queries) & (column[None, :] < HD)
    tl.store(out + query[:, None] * out_row + column[None, :], (acc / total[:, None]).to(out.dtype.element_ty), inside)
    if REST > 0:
        column = WIDTH + tl.arange(0, REST)
        inside = (query[:, None] < queries) & (column[None, :] < HD)
        tl.store(
            out + query[:, None] * out_row + column[None, :],
            (acc_rest / total[:, None]).to(out.dtype.element_ty),
            inside,
        )
