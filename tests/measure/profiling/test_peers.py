"""Peers: the same weights, equal numbers of full computes, and a reason where one can't be measured."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.building.verification import model_arguments
from accelaes_export.measure.profiling import peers as peers_module
from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.peer_caches import (
    FirstBlockCache,
    MagCache,
    TaylorSeer,
    TaylorSeerLite,
    Wanted,
)
from accelaes_export.measure.profiling.peer_models import blocks_of, give_text_on, with_shared_weights
from accelaes_export.measure.profiling.peer_search import matching_knob
from accelaes_export.measure.profiling.peers import Peers
from accelaes_export.measure.profiling.spans import Spans
from accelaes_export.measure.profiling.timing import HostStopwatch, Timing
from accelaes_export.policies import StepCache
from accelaes_export.policies.plan import Plan
from tests.measure.profiling.tiny import tiny

CPU = torch.device("cpu")
T = 12
PLAN = StepCache(warmup=4).plan(T)  # DDDD.D.D.D.D


def peers(family: str, *names: str, plan: Plan = PLAN) -> tuple[Peers, DenoiseProblem, Spans]:
    manifest, model, _ = tiny(family)
    made = Peers(model.requires_grad_(False), model_arguments(manifest, model), names, plan)
    return made, DenoiseProblem(manifest, 1, len(plan), CPU), Spans(HostStopwatch())


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image", "wan", "pixart"])
def test_diffusers_caches_compute_as_often_as_the_plan(family: str) -> None:
    made, problem, spans = peers(family, "diffusers-caches")
    runs, absent = made.runs(problem, spans)
    assert not absent
    assert [run.name for run in runs] == ["FirstBlockCache", "MagCache", "TaylorSeer", "TaylorSeer lite"]
    by_name = {run.name: run for run in runs}
    for name in ("TaylorSeer", "TaylorSeer lite"):  # these are told when to compute
        assert by_name[name].plan == PLAN.symbols
    for run in runs:
        found = run.profile({run.name: Timing(0.0, [2.0], [2.0]), "dense": Timing(0.0, [3.0], [3.0])}, "dense")
        assert found.wanted_computes == PLAN.symbols.count("D")
        assert found.full_computes == run.plan.count("D") and found.plan.startswith("D")
        assert found.dense_over_this is not None and found.dense_over_this.median == 1.5
        assert {"torch", "diffusers"} <= found.versions.keys()


def last_attention_projection(model: torch.nn.Module) -> torch.nn.Module:
    """The first linear layer of the last block's attention: a second way to see whether the network ran."""
    named = blocks_of(model)[-1].named_modules()
    return next(module for name, module in named if "attn" in name and isinstance(module, torch.nn.Linear))


def test_computes_are_counted_anew_in_a_later_run_and_come_to_the_same() -> None:
    """What was searched for holds in the rounds: state is forgotten between runs."""
    made, problem, spans = peers("sd3", "diffusers-caches")
    for run in made.runs(problem, spans)[0]:
        for _ in range(2):
            called: list[bool] = []
            hook = last_attention_projection(run.model).register_forward_hook(lambda *_, c=called: c.append(True))
            run()
            hook.remove()
            assert len(called) == run.plan.count("D"), run.name


@pytest.mark.parametrize(
    ("family", "names", "reason"),
    [
        ("lumina", ["FirstBlockCache", "MagCache", "TaylorSeer lite"], "LuminaNextDiT2DModel: ValueError: Model class"),
        ("dit", ["TaylorSeer lite"], "DiTTransformer2DModel: ValueError: its output layer isn't called proj_out"),
    ],
)
def test_a_family_that_a_cache_does_not_know_is_named_with_the_reason(
    family: str, names: list[str], reason: str
) -> None:
    made, problem, spans = peers(family, "diffusers-caches")
    runs, absent = made.runs(problem, spans)
    assert [peer.name for peer in absent] == names
    assert f"it doesn't run on {reason}" in absent[0].reason
    (taylor,) = (run for run in runs if run.name == "TaylorSeer")
    assert taylor.plan == PLAN.symbols


def test_a_peer_that_is_not_installed_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "find_spec", lambda name: None)
    made, problem, spans = peers("sd3", "cache-dit")
    runs, (absent,) = made.runs(problem, spans)
    assert not runs
    assert (absent.name, absent.reason, absent.remedy) == (
        "cache-dit",
        "cache-dit isn't installed",
        "pip install cache-dit",
    )


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image", "lumina"])
def test_cache_dit_follows_the_plan_to_the_step(family: str) -> None:
    pytest.importorskip("cache_dit", reason="cache-dit isn't installed")
    made, problem, spans = peers(family, "cache-dit")
    (run,), absent = made.runs(problem, spans)
    assert not absent and run.plan == PLAN.symbols


def test_a_plan_without_skips_makes_every_cache_compute_all_steps() -> None:
    plan = Plan("D" * 6)
    made, problem, spans = peers("sd3", "diffusers-caches", plan=plan)
    runs, _ = made.runs(problem, spans)
    assert {run.plan for run in runs if run.name != "FirstBlockCache"} == {"DDDDDD"}


def test_eager_computes_everything_and_says_the_versions() -> None:
    made, problem, spans = peers("sd3", "eager")
    (run,), _ = made.runs(problem, spans)
    found = run.profile({run.name: Timing(0.0, [2.0], [2.0])}, "dense")
    assert (found.name, found.plan, found.full_computes, found.wanted_computes) == ("diffusers eager", "D" * T, T, None)
    assert found.dense_over_this is None and found.first_seconds > 0


def test_compiled_peers_are_made_of_copies_and_keep_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler's minutes: what is compiled, and where, is what counts here."""
    compiled = []

    def compile_(target, **options):
        compiled.append((target, options))
        return target

    monkeypatch.setattr(torch, "compile", compile_)
    made, problem, spans = peers("sd3", "compile", "diffusers-caches")
    runs, absent = made.runs(problem, spans)
    names = [run.name for run in runs]
    assert not absent and names[0] == "torch.compile" and "MagCache, compiled" in names
    by_name = {run.name: run for run in runs}
    for name in ("FirstBlockCache", "MagCache", "TaylorSeer", "TaylorSeer lite"):
        assert by_name[f"{name}, compiled"].plan == by_name[name].plan
        assert by_name[f"{name}, compiled"].settings == by_name[name].settings
    (whole, _), *parts = compiled
    assert isinstance(whole, torch.nn.Module)
    owners = [type(target.__self__).__name__ for target, _ in parts if hasattr(target, "__self__")]
    blocks = len(whole.transformer_blocks)
    # Each cache twice, to be timed and to be counted. TaylorSeer's hooks are on the blocks' attention, the three
    # others' on the blocks; the last one is a function by then, which hands its text on.
    assert owners.count("Attention") == 2 * blocks and owners.count("JointTransformerBlock") == 3 * 2 * (blocks - 1)
    assert all(options == {"dynamic": False} for _, options in compiled)


def test_peers_leave_the_model_as_it_was_and_share_its_weights() -> None:
    made, problem, spans = peers("sd3", "eager", "diffusers-caches")
    model = made._model
    before = {name: module.forward for name, module in model.named_modules()}
    runs, _ = made.runs(problem, spans)
    assert {name: module.forward for name, module in model.named_modules()} == before
    own = {parameter.data_ptr() for parameter in model.parameters()}
    for run in runs:
        assert {parameter.data_ptr() for parameter in run.model.parameters()} == own


def test_a_copy_with_shared_weights_is_of_other_modules() -> None:
    _, model, _ = tiny("sd3")
    copied = with_shared_weights(model)
    assert not {id(m) for m in copied.modules()} & {id(m) for m in model.modules()}
    assert all(a is b for a, b in zip(copied.parameters(), model.parameters(), strict=True))


def test_a_block_that_returns_no_text_is_made_to_and_computes_the_same() -> None:
    _, model, _ = tiny("sd3")
    block = blocks_of(model)[-1]
    D = model.config.num_attention_heads * model.config.attention_head_dim
    x, text, temb = torch.randn(1, 5, D), torch.randn(1, 3, D), torch.randn(1, D)
    none, expected = block(hidden_states=x, encoder_hidden_states=text, temb=temb)
    assert none is None
    give_text_on(block)
    for handed_on, found in (block(hidden_states=x, encoder_hidden_states=text, temb=temb), block(x, text, temb)):
        assert handed_on is text and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("symbols", "first_skip", "interval", "last_computed", "count"),
    [
        ("DDDDD.D.D.DD", 5, 2, 10, 9),
        ("DD..D..D.", 2, 3, 9, 4),
        ("DDDD", 4, 1, 4, 4),
    ],
)
def test_what_is_wanted_is_read_from_the_plan(
    symbols: str, first_skip: int, interval: int, last_computed: int, count: int
) -> None:
    wanted = Wanted.of(Plan(symbols))
    assert (wanted.first_skip, wanted.interval, wanted.last_computed) == (first_skip, interval, last_computed)
    assert wanted.count == count and len(wanted.computed) == len(symbols)


def test_settings_are_the_plans() -> None:
    wanted = Wanted.of(PLAN)
    assert TaylorSeer().settings(wanted, 10.6)["disable_cache_after_step"] == 11
    assert "use_lite_mode" not in TaylorSeer().settings(wanted, 11)
    assert TaylorSeerLite().settings(wanted, 11)["use_lite_mode"] is True
    assert MagCache().settings(wanted, 0.5)["retention_ratio"] == pytest.approx(4 / 12)
    assert MagCache().settings(wanted, 0.5)["max_skip_steps"] == 1
    assert FirstBlockCache().settings(wanted, 0.25) == {"threshold": 0.25}


@given(
    thresholds=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=27),
    wanted=st.integers(1, 28),
)
def test_the_search_finds_the_wanted_number_of_computes_where_there_is_one(
    thresholds: list[float], wanted: int
) -> None:
    """A cache that computes a step wherever its change is above the knob, and always the first."""

    def computes(knob: float) -> int:
        return 1 + sum(change > knob for change in thresholds)

    knob, found = matching_knob(computes, wanted, 1e-4, 4.0, tries=60)
    assert computes(knob) == found
    reachable = {computes(k) for k in [0.0, 4.0, *thresholds]}
    assert abs(found - wanted) == min(abs(count - wanted) for count in reachable)


def test_the_search_asks_once_where_there_is_nothing_to_search() -> None:
    asked = []
    assert matching_knob(lambda knob: asked.append(knob) or 7, 17, 0.0, 0.0) == (0.0, 7)
    assert asked == [0.0]


def test_the_search_stops_at_a_guess_that_does() -> None:
    asked: list[float] = []
    assert matching_knob(lambda knob: asked.append(knob) or 7, 7, 0.0, 9.0, guess=4.0) == (4.0, 7)
    assert asked == [4.0]


def test_the_search_halves_wide_ranges_in_the_logarithm() -> None:
    asked: list[float] = []

    def computes(knob: float) -> int:
        asked.append(knob)
        return 10 if knob < 1e-3 else 0

    matching_knob(computes, 5, 1e-4, 1.0, tries=3)
    assert asked[1] == pytest.approx(1e-2) and asked[2] == pytest.approx(math.sqrt(1e-4 * 1e-2))


def test_no_peer_is_imported_before_it_is_asked_for() -> None:
    made, problem, spans = peers("sd3", "eager")
    before = set(sys.modules)
    made.runs(problem, spans)
    assert not [name for name in set(sys.modules) - before if name.startswith("cache_dit")]
