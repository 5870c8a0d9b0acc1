"""The attention kernel against float64 attention over merged keys, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.plugin.interpreted  # noqa: F401  (before the kernel)
from accelaes_export.plugins.sparse_query_attention.tiles import Tile
from accelaes_export.plugins.sparse_query_attention.torch_op import attention, why_not
from tests.plugin.attention_reference import Case, assert_close, case

# The interpreter computes with NumPy, which warns of the infinities and NaN that some tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tile(16, 16, 4, 2)
THROUGH_DESCRIPTORS = Tile(16, 16, 4, 2, descriptors=True)
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


@settings(max_examples=25)
@given(
    B=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    nq=st.integers(1, 40),
    nk=st.integers(1, 40),
    m=st.integers(0, 40),
    hd=st.sampled_from([32, 40, 64, 72, 96, 120]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    bias=st.sampled_from(["", "full", "keys", "masks"]),
    tile=st.sampled_from([SMALL, THROUGH_DESCRIPTORS, Tile(32, 16, 4, 2), Tile(16, 64, 4, 2)]),
    seed=st.integers(0, 2**20),
)
def test_any_shape_equals_attention_over_merged_keys(B, heads, nq, nk, m, hd, dtype, bias, tile, seed):
    H, group = heads
    drawn = case(B=B, H=H, group=group, nq=nq, nk=nk, m=m, hd=hd, dtype=dtype, bias=bias, seed=seed)
    assert_close(attention(*drawn, tile=tile), drawn)


@dtypes
@pytest.mark.parametrize("hd", [32, 72, 128, 160, 256])
def test_every_head_size_between_32_and_256_works_in_one_part_or_two(hd, dtype):
    drawn = case(H=1, nq=17, nk=33, m=18, hd=hd, dtype=dtype)
    assert_close(attention(*drawn, tile=SMALL), drawn)


def test_strided_tensors_are_read_where_they_lie():
    """As attention processors make them: [B, tokens, H, hd] transposed, and segments that are slices of more."""
    drawn = case(B=2, H=4, group=2, nq=11, nk=20, m=9, hd=32, bias="keys")
    moved = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (drawn.q, drawn.k, drawn.v)]
    wide = [torch.cat([t, torch.full_like(t, torch.nan)], 2)[:, :, : t.shape[2]] for t in (drawn.k_bg, drawn.v_bg)]
    assert not any(t.is_contiguous() for t in (*moved, *wide))
    out = attention(*moved, *wide, drawn.scale, drawn.bias, tile=SMALL)
    assert out.is_contiguous()
    assert_close(out, drawn)


@dtypes
def test_extreme_logits_choose_the_largest_key_and_stay_finite(dtype):
    """Integers, so that products are exact: scores from -16384 to 16384, as differences of which exp would overflow."""
    draw = torch.Generator().manual_seed(3)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-32, 33, shape, generator=draw).to(dtype)

    drawn = Case(whole(1, 2, 20, 64), whole(1, 2, 30, 64), whole(1, 2, 30, 64), whole(1, 2, 21, 64),
                 whole(1, 2, 21, 64), 0.25)  # fmt: skip
    found = attention(*drawn, tile=SMALL)
    assert found.isfinite().all()
    assert_close(found, drawn)


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.bfloat16).min, -10000.0])
def test_masks_as_low_as_the_dtype_goes_leave_their_keys_out(lowest):
    drawn = case(H=1, nq=5, nk=30, m=10, dtype=torch.bfloat16)
    bias = torch.zeros(1, 1, 1, 40, dtype=torch.bfloat16)
    bias[..., 3:35] = lowest
    assert_close(attention(*drawn[:6], bias, tile=SMALL), drawn._replace(bias=bias))
    kept = Case(drawn.q, drawn.k[:, :, :3], drawn.v[:, :, :3], drawn.k_bg[:, :, 5:], drawn.v_bg[:, :, 5:], drawn.scale)
    assert_close(attention(*drawn[:6], bias, tile=SMALL), kept)


def test_rows_without_any_key_give_zeros_and_the_others_are_untouched():
    drawn = case(H=1, nq=20, nk=20, m=5, bias="full")
    drawn.bias[:, :, [0, 17]] = -torch.inf
    found = attention(*drawn, tile=SMALL)
    assert not found[:, :, [0, 17]].any()
    assert_close(found, drawn)


@dtypes
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["q", "k", "v", "k_bg", "v_bg"])
def test_nan_and_infinity_come_out_where_they_must_and_nowhere_else(dtype, value, place):
    drawn = case(H=2, nq=20, nk=20, m=20, dtype=dtype)
    getattr(drawn, place)[0, 1, 17, 3] = value
    found = attention(*drawn, tile=SMALL)
    assert found[0, 0].isfinite().all()  # another head
    assert not found[0, 1].isfinite().all() or place in ("k", "k_bg")
    assert_close(found, drawn)


def test_65536_keys_in_fp16_do_not_overflow():
    """Equal weights on the largest values of fp16: any sum in half precision would be infinite."""
    zeros = torch.zeros(1, 1, 60000, 32, dtype=torch.float16)
    drawn = Case(
        torch.ones(1, 1, 1, 32, dtype=torch.float16),
        zeros,
        torch.full_like(zeros, 65504),
        zeros[:, :, :5536],
        torch.full_like(zeros[:, :, :5536], 65504),
        1.0,
    )
    assert torch.equal(attention(*drawn, tile=Tile(16, 256, 4, 2)), torch.full((1, 1, 1, 32), 65504).half())


def test_one_query_over_the_background_alone_and_no_queries_at_all():
    drawn = case(nq=1, nk=0, m=9)
    assert_close(attention(*drawn, tile=SMALL), drawn)
    assert attention(*case(nq=0), tile=SMALL).shape == (1, 2, 0, 32)


def test_what_the_kernel_can_not_take_is_said_in_words():
    drawn = case(hd=32)
    single = [t.float() if isinstance(t, torch.Tensor) else t for t in drawn]
    assert "float32" in why_not(*single[:5])
    with pytest.raises(ValueError, match="fp16 and bf16, not torch.float32"):
        attention(*single)
    odd = [t[..., :20] for t in drawn[:5]]
    assert "steps of 8, not 20" in why_not(*odd)
    turned = [t.transpose(2, 3) if i == 1 else t for i, t in enumerate(case(nk=32, hd=32)[:5])]
    assert "contiguous" in why_not(*turned)
    with pytest.raises(ValueError, match="don't fit keys and values"):
        attention(drawn.q, drawn.k, drawn.v[:, :, 1:], drawn.k_bg, drawn.v_bg, 1.0)
    with pytest.raises(ValueError, match=r"The bias is \(1, 1, 9, 5\); it must be \[1 or 1, 1, 1 or 9, 19\]"):
        attention(*drawn[:6], drawn.q.new_zeros(1, 1, 9, 5))
