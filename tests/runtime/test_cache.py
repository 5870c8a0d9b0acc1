"""The background cache hands engines the right rows, at addresses that stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.runtime.cache import BackgroundCache
from tests.tiny_sd3 import tiny_config, tiny_contract

CONTRACT, _ = tiny_contract(tiny_config(num_layers=1))
N, HEADS, HD = 48, 4, 16


def filled(rows=2, seed=0):
    cache = BackgroundCache(CONTRACT, rows, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for tensor in cache.full.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    cache.invalidate()
    return cache


def index_sets(rows, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(N, generator=generator)[:n].sort().values for _ in range(rows)])


@given(rows=st.integers(1, 3), m=st.integers(0, N), seed=st.integers(0, 1000))
def test_every_row_gets_its_own_background(rows, m, seed):
    cache, index = filled(rows, seed), index_sets(rows, m, seed)
    inputs = cache.background(index)
    assert set(inputs) == {"cache.0.k_bg", "cache.0.v_bg"}
    for name in ("cache.0.k", "cache.0.v"):
        for b in range(rows):
            for h in range(HEADS):
                for place, token in enumerate(index[b].tolist()):
                    assert torch.equal(inputs[f"{name}_bg"][b, h, place], cache.full[name][b, h, token])


@given(n=st.integers(1, N), seed=st.integers(0, 1000))
def test_what_a_sparse_step_writes_back_is_what_others_read(n, seed):
    cache, focus = filled(seed=seed), index_sets(2, n, seed)
    before = {name: tensor.clone() for name, tensor in cache.full.items()}
    fresh = cache.fresh(n)
    for name, tensor in fresh.items():
        assert tensor.shape == (2, HEADS, n, HD)
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + len(name))))
    cache.write(focus, fresh)
    everything = torch.arange(N).expand(2, N).contiguous()
    seen = cache.background(everything)
    for name in before:
        for b in range(2):
            for token in range(N):
                at = (focus[b] == token).nonzero()
                wanted = fresh[name][b, :, at[0, 0]] if len(at) else before[name][b, :, token]
                assert torch.equal(seen[f"{name}_bg"][b, :, token], wanted)


def test_rows_are_gathered_again_only_when_they_or_the_cache_changed(monkeypatch):
    cache, index = filled(), index_sets(2, 24, 1)
    gathers = []
    select = torch.index_select
    monkeypatch.setattr(torch, "index_select", lambda *a, **k: gathers.append(1) or select(*a, **k))
    cache.background(index)
    cache.background(index)
    assert len(gathers) == 2, "K and V once"
    cache.background(index[:, :0])
    cache.background(index)
    assert len(gathers) == 2, "a dense step between reads nothing"
    cache.invalidate()
    cache.background(index)
    assert len(gathers) == 4
    cache.background(index.clone())
    assert len(gathers) == 6, "another selection"


@pytest.mark.parametrize("between", [12, 24, 0])
def test_addresses_stay_whatever_other_buckets_run_between(between):
    cache = filled()
    first = {name: t.data_ptr() for name, t in cache.background(index_sets(2, 24, 1)).items()}
    cache.background(index_sets(2, between, 2))
    cache.invalidate()
    again = {name: t.data_ptr() for name, t in cache.background(index_sets(2, 24, 3)).items()}
    assert first == again
