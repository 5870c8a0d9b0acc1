"""A policy as programs: functions of named tensors of fixed shape, the same for every runtime.

    advance        what is known of the tokens, and what an engine computed of all -> what is known now
    advance_focus  the same after a sparse step
    extrapolate    what is known of the tokens                                     -> every token's prediction
                   (with learned coefficients also of which half each row is)
    score          what is known of the conditional rows, affinity and mask        -> a number a token: the largest run
    guide          the predictions of both halves                                  -> the guided one
    guide_by_region  the same by the mask, where the policy guides by region
    carry          when cached tensors were made                                   -> how far they are carried on
    decide         what a gate remembers, and the latents                          -> whether the step is computed
    observe        what a gate remembers, and the step's prediction                -> what it remembers now

They are put together from the functions that Python's own loop calls, so nothing of a policy is written twice. They
branch on no value, wait for nothing, and have no sort, scatter or gather; what isn't policy is the runtime's: the n
largest of a score with ties to the lower index, its complement, moving rows, and the plan's table.

Shapes are in letters: B rows (both halves of guidance pairs), b images, N tokens, w the numbers of a token. Everything
is fp32; 1 means yes and 0 no. A tensor without letters may be a plain number. Nothing that is given is written to or
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from accelaes_export.policies.base import Extrapolation, Gate, Policy, Selector, SpatialGuidance
from accelaes_export.policies.cache_clocks import CacheClocks, carried, made
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.gating import GateState
from accelaes_export.policies.guidance import at_length_of, guided, softened_mask, spatial, with_free_channels
from accelaes_export.policies.history_state import HistoryState, estimated, predicted, taken_in, weighed

Tensors = Mapping[str, Any]
"""Tensors by name, and numbers for those of shape ()."""
Compute = Callable[[Tensors], Mapping[str, torch.Tensor]]
Shape = tuple[str | int, ...]

CACHED_MADE = "cached.made"
_CACHE_CLOCKS = ("cached.latest", "cached.before", CACHED_MADE)

GUIDE_BY_REGION = "guide_by_region"

_GATE = "gate."

TOKENS: Shape = ("B", "N")
PREDICTIONS: Shape = ("B", "N", "w")


@dataclass(frozen=True)
class Program:
    """One of a policy's functions: the tensors it reads and makes by name, with their shapes."""

    name: str
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    compute: Compute


@dataclass(frozen=True)
class Picture:
    """What programs need to know of a bundle's pictures.

    Attributes:
        latents: shape of one image's.
        grid: token rows and columns.
        channels: of a token's cell.
        guided_channels: how many of them are guided; None: all.
        rescaled: whether a guided prediction is scaled to the conditional one's length, token by token.
        cells: [b, N, w] predictions as the channels of each of a token's cells, [b, N, P, C].
        component: whether an engine's sparse step predicts the background as well.
    """

    latents: tuple[int, ...]
    grid: tuple[int, int]
    channels: int
    guided_channels: int | None
    rescaled: bool
    cells: Callable[[torch.Tensor], torch.Tensor]
    component: bool


def programs_of(policy: Policy, picture: Picture) -> tuple[Program, ...]:
    """The programs of a policy: `advance`, `extrapolate` and `guide`, and those it has a use for."""
    how, by_region, selector, gate = policy.extrapolation, policy.spatial_guidance, policy.selector(), policy.gate()
    found = [_advance(how, picture, sparse=False), _extrapolate(how), _guide(picture, None)]
    if by_region is not None:
        found.append(_guide(picture, by_region))
    if selector is not None:
        found += _advance(how, picture, sparse=True), _score(how, selector, picture)
    if how.cache_reach:
        found.append(_carry(how))
    if gate is not None:
        found += _gating(gate, picture)
    return tuple(found)


def state_shapes(how: Extrapolation) -> dict[str, Shape]:
    """The tensors of what is known of the tokens, all zeros before the first step."""
    of_history: dict[str, Shape] = {
        **{f"prediction.{k}": PREDICTIONS for k in range(how.order + 1)},
        **{f"clock.{k}": TOKENS for k in range(how.order + 1)},
        **dict.fromkeys(("known", "drops", "ran"), TOKENS),
        **dict.fromkeys(("agreed", "foreseen"), ("B",)),
    }
    return of_history | (dict.fromkeys(_CACHE_CLOCKS, TOKENS) if how.cache_reach else {})


def history_of(tensors: Tensors, order: int) -> HistoryState:
    """The state that is among a program's tensors."""
    of_tokens = (tensors[name] for name in ("known", "drops", "ran", "agreed", "foreseen"))
    slots = range(order + 1)
    predictions = tuple(tensors[f"prediction.{k}"] for k in slots)
    return HistoryState(predictions, tuple(tensors[f"clock.{k}"] for k in slots), *of_tokens)


def _by_name(state: HistoryState) -> dict[str, torch.Tensor]:
    predictions = {f"prediction.{k}": tensor for k, tensor in enumerate(state.predictions)}
    clocks = {f"clock.{k}": tensor for k, tensor in enumerate(state.clocks)}
    return (
        predictions | clocks | {name: getattr(state, name) for name in ("known", "drops", "ran", "agreed", "foreseen")}
    )


def _advance(how: Extrapolation, picture: Picture, *, sparse: bool) -> Program:
    """The state after a step in which all tokens were computed, or some.

    `computed` [B, N, w] are every token's latest predictions: where `running` [B, N] is 0 this step's as well in
    component form, whose sparse steps predict all tokens, and the ones before in token form. `cached` [B, N]: whose
    cached tensors were made and kept.
    """
    inputs: dict[str, Shape] = {"computed": PREDICTIONS, "now": ()}
    if sparse:
        inputs["running"] = TOKENS
    if how.cache_reach:
        inputs["cached"] = TOKENS

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        state, latest, now = history_of(tensors, how.order), tensors["computed"].clone(), tensors["now"]
        running = tensors["running"] > 0 if sparse else None
        predicted_now = None if picture.component else running
        after = taken_in(state, latest, now, predicted_now, running, calibrated=how.calibrated)
        found = _by_name(after)
        if how.cache_reach:
            clocks = made(CacheClocks(*(tensors[name] for name in _CACHE_CLOCKS)), now, tensors["cached"] > 0)
            found |= zip(_CACHE_CLOCKS, clocks, strict=True)
        return found

    state = state_shapes(how)
    return Program("advance_focus" if sparse else "advance", {**state, **inputs}, state, compute)


def _extrapolate(how: Extrapolation) -> Program:
    """Every token's prediction [B, N, w] at `target` on the clock; `conditional` [B]: 1 in rows of that half."""
    if how.coefficients is not None:
        return _weighed(how, how.coefficients)

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        return {"predicted": predicted(history_of(tensors, how.order), tensors["target"], how)}

    return Program("extrapolate", {**state_shapes(how), "target": ()}, {"predicted": PREDICTIONS}, compute)


def _weighed(how: Extrapolation, coefficients: Coefficients) -> Program:
    """The same by learned weights, whose table is part of the program."""
    tables: dict[torch.device, torch.Tensor] = {torch.device("cpu"): coefficients.table()}

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        device = tensors["conditional"].device
        if device not in tables:
            tables[device] = coefficients.table().to(device)
        known = history_of(tensors, how.order)
        return {"predicted": weighed(known, tensors["target"], tensors["conditional"], coefficients, tables[device])}

    inputs: dict[str, Shape] = {**state_shapes(how), "target": (), "conditional": ("B",)}
    return Program("extrapolate", inputs, {"predicted": PREDICTIONS}, compute)


def _score(how: Extrapolation, selector: Selector, picture: Picture) -> Program:
    """Of the conditional rows: `affinity` [b, N] of the mask step, `mask` [b, N] its largest, where there is one."""
    of_images = {name: ("b", *shape[1:]) for name, shape in state_shapes(how).items()}
    masked = selector.mask_step is not None
    seen: dict[str, Shape] = {"affinity": ("b", "N"), "mask": ("b", "N")} if masked else {}

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        estimates = estimated(history_of(tensors, how.order), tensors["now"])
        estimates = replace(estimates, last=picture.cells(estimates.last.squeeze(2)))
        score = selector.score(estimates, tensors.get("affinity"), tensors.get("mask"))
        return {"score": score.clone() if score is tensors.get("affinity") else score}

    return Program("score", {**of_images, **seen, "now": ()}, {"score": ("b", "N")}, compute)


def _guide(picture: Picture, by_region: SpatialGuidance | None) -> Program:
    """The guided prediction [b, N, w]: by the pipeline's `scale`, or by region and `mask` [b, N]."""
    halves: dict[str, Shape] = {"uncond": ("b", "N", "w"), "cond": ("b", "N", "w")}

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        uncond, cond = tensors["uncond"], tensors["cond"]
        if by_region is None:
            everywhere = guided(uncond, cond, tensors["scale"])
        else:
            soft = softened_mask(tensors["mask"], picture.grid, by_region.softness)
            everywhere = spatial(uncond, cond, soft, by_region)
        if picture.rescaled:
            everywhere = at_length_of(cond, everywhere)
        return {"guided": with_free_channels(everywhere, cond, picture.guided_channels, picture.channels)}

    name, more = ("guide", {"scale": ()}) if by_region is None else (GUIDE_BY_REGION, {"mask": ("b", "N")})
    return Program(name, {**halves, **more}, {"guided": ("b", "N", "w")}, compute)


def _carry(how: Extrapolation) -> Program:
    """How far [B, N] every token's cached tensors are carried on beyond their last, in gaps between their last two."""

    def compute(tensors: Tensors) -> dict[str, torch.Tensor]:
        clocks = CacheClocks(*(tensors[name] for name in _CACHE_CLOCKS))
        return {"distance": carried(clocks, tensors["now"], how.cache_reach)}

    return Program("carry", {**dict.fromkeys(_CACHE_CLOCKS, TOKENS), "now": ()}, {"distance": TOKENS}, compute)


def nothing_seen(gate: Gate, latents: torch.Tensor, prediction: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a gate remembers before the first step, as its programs call it, of latents and predictions like these."""
    return {_GATE + name: tensor for name, tensor in gate.nothing_seen(latents, prediction).items()}


def _gating(gate: Gate, picture: Picture) -> tuple[Program, ...]:
    """`decide` by the latents of all images, and `observe` the prediction of a computed step, of the same rows."""
    latents: Shape = ("B", *picture.latents)
    sizes = {"before": latents, "at": latents, "predicted": PREDICTIONS}
    names = tuple(gate.nothing_seen(torch.zeros(1), torch.zeros(1)))
    state = {_GATE + name: sizes.get(name, ()) for name in names}

    def remembered(tensors: Tensors) -> GateState:
        return {name: tensors[_GATE + name] for name in names}

    def kept(after: GateState) -> dict[str, torch.Tensor]:
        return {_GATE + name: tensor.clone() for name, tensor in after.items()}

    def decide(tensors: Tensors) -> dict[str, torch.Tensor]:
        after, computed = gate.decide(remembered(tensors), tensors["latents"], tensors["step"])
        return {**kept(after), "wanted": computed.to(torch.float32)}

    def observe(tensors: Tensors) -> dict[str, torch.Tensor]:
        return kept(gate.observe(remembered(tensors), tensors["prediction"]))

    deciding = Program("decide", {**state, "latents": latents, "step": ()}, {**state, "wanted": ()}, decide)
    observing = Program("observe", {**state, "prediction": PREDICTIONS}, state, observe)
    return (deciding, observing) if gate.observes else (deciding,)
