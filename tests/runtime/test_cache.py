"""The background cache hands engines the right rows, at addresses that stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.backends.workspace import Workspace
from accelaes_export.policies.cache_clocks import CacheClocks, carried, made
from accelaes_export.policies.selection import focus_mask
from accelaes_export.runtime.cache import BackgroundCache, _alike
from tests.no_host_sync import NoHostSync
from tests.tiny_sd3 import tiny_config, tiny_contract

CONTRACT, _ = tiny_contract(tiny_config(num_layers=1))
N, HEADS, HD = 48, 4, 16
CPU = torch.device("cpu")


def filled(rows=2, seed=0):
    cache = BackgroundCache(CONTRACT, Workspace(rows, CPU))
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
    cache.write(focus)
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
    assert len(gathers) == 1, "all tensors at once"
    cache.background(index[:, :0])
    cache.background(index)
    assert len(gathers) == 1, "a dense step between reads nothing"
    cache.invalidate()
    cache.background(index)
    assert len(gathers) == 2
    cache.background(index.clone())
    assert len(gathers) == 3, "another selection"


@pytest.mark.parametrize("between", [12, 24, 0])
def test_addresses_stay_whatever_other_buckets_run_between(between):
    cache = filled()
    first = {name: t.data_ptr() for name, t in cache.background(index_sets(2, 24, 1)).items()}
    cache.background(index_sets(2, between, 2))
    cache.invalidate()
    again = {name: t.data_ptr() for name, t in cache.background(index_sets(2, 24, 3)).items()}
    assert first == again


@st.composite
def cached_runs(draw):
    """What happens when: everything or a few tokens are written, a background is read, what was before is forgotten."""
    clock, events = 0.0, [("dense", 0.0)]
    for _ in range(draw(st.integers(1, 7))):
        clock += draw(st.sampled_from([1.0, 2.0, 0.5]))
        kind = draw(st.sampled_from(["dense", "sparse", "read", "read", "forget"]))
        events.append((kind, clock))
        if kind == "forget":  # what is cached is void: the next step computes everything
            events.append(("dense", clock))
    return [*events, ("read", clock + 1)]


class Clocked:
    """A cache that keeps two of everything, with the clocks of what is in it."""

    def __init__(self, rows: int, reach: float) -> None:
        self.cache, self.reach = BackgroundCache(CONTRACT, Workspace(rows, CPU), keeps_two=True), reach
        self.everything = torch.ones(rows, N, dtype=torch.bool)
        self.clocks = self.never = CacheClocks(*torch.zeros(3, rows, N))

    def forget(self) -> None:
        self.clocks = self.never

    def renewing(self, clock: float) -> dict[str, torch.Tensor]:
        self.clocks = made(self.clocks, clock, self.everything)
        return self.cache.renewing()

    def write(self, index: torch.Tensor, clock: float) -> None:
        self.clocks = made(self.clocks, clock, focus_mask(index, N) > 0)
        self.cache.write(index)

    def background(self, index: torch.Tensor, clock: float) -> dict[str, torch.Tensor]:
        return self.cache.background(index, carried(self.clocks, clock, self.reach))


@given(events=cached_runs(), reach=st.sampled_from([0.5, 1.0, 3.0]), seed=st.integers(0, 1000))
def test_cached_tensors_follow_the_line_through_each_tokens_own_last_two(events, reach, seed):
    """Against a list per token of (when, value), in double precision."""
    rows, n, m = 2, 12, 24
    cache = Clocked(rows, reach)
    generator = torch.Generator().manual_seed(seed)
    known = {name: [[[] for _ in range(N)] for _ in range(rows)] for name in cache.cache.full}
    everything = torch.arange(N).expand(rows, N)
    addresses = set()
    for kind, clock in events:
        index = index_sets(rows, n if kind == "sparse" else m, seed + int(10 * clock))
        if kind == "forget":
            cache.forget()
            known = {name: [[[] for _ in range(N)] for _ in range(rows)] for name in known}
        elif kind == "read":
            found = cache.background(index, clock)
            for name, by_row in known.items():
                for b in range(rows):
                    expected = torch.stack([on_the_line(by_row[b][token], clock, reach) for token in index[b]], dim=1)
                    assert torch.allclose(found[f"{name}_bg"][b].double(), expected, atol=1e-4)
        else:
            index = everything if kind == "dense" else index
            written = cache.renewing(clock) if kind == "dense" else cache.cache.fresh(n)
            for name, tensor in written.items():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                for b in range(rows):
                    for place, token in enumerate(index[b]):
                        known[name][b][token].append((clock, tensor[b, :, place].double()))
            if kind == "dense":
                addresses.add(tuple(tensor.data_ptr() for tensor in written.values()))
            else:
                cache.write(index, clock)
    assert len(addresses) == 1, "engines find the tensors where they were"


def on_the_line(made, clock, reach):
    (last, value), *before = made[:-3:-1]
    if not before or last == before[0][0]:
        return value
    distance = min((clock - last) / (last - before[0][0]), reach)
    return value + distance * (value - before[0][1])


def test_extrapolated_rows_are_gathered_for_every_step_they_are_asked_for():
    cache, index = Clocked(1, 1.0), index_sets(1, 24, 1)
    for clock in (0.0, 1.0):
        for tensor in cache.renewing(clock).values():
            tensor.fill_(clock)
    found = [cache.background(index, clock)["cache.0.k_bg"].unique().item() for clock in (1.25, 1.75, 9.0)]
    assert found == [1.25, 1.75, 2.0], "on the line, and no further than one gap"


def test_extrapolating_waits_for_nothing():
    cache = Clocked(2, 1.0)
    with NoHostSync():
        cache.renewing(0.0)
        cache.renewing(1.0)
        cache.cache.fresh(12)
        cache.write(index_sets(2, 12, 0), 2.0)
        cache.background(index_sets(2, 24, 1), 3.0)


@pytest.mark.parametrize(("kind", "tokens", "stacks"), [("cpu", 44, 1), ("cuda", 64, 1), ("cuda", 44, 2)])
def test_tensors_lie_one_behind_the_other_where_engines_find_them_at_aligned_addresses(kind, tokens, stacks):
    """A token has 128 bytes: on GPUs its buckets of 16 tokens are a multiple of 256, and those of 11 aren't."""
    buckets = (tokens // 4, tokens // 2, tokens)
    contract = CONTRACT.model_copy(update={"tokens": tokens, "buckets": buckets})
    workspace = Workspace(1, torch.device(kind))
    assert len(_alike(contract, workspace, torch.float16)) == stacks
