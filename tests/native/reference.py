"""The same runs by Python's denoiser: flow matching by Euler's method, from inputs that are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.patches import patchify, unpatchify
from accelaes_export.contract.presets import Preset
from accelaes_export.contract.tensors import HIDDEN_STATES
from accelaes_export.policies import Plan, StepKind, from_name
from accelaes_export.policies.guidance import guided, with_free_channels
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL, Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run


@dataclass(frozen=True)
class Setting:
    """What a run is made of.

    Attributes:
        inputs: as the C ABI takes them: latents [b, ...], conditioning [rows, ...], token_weights [b, M].
        sigmas, timesteps: [T + 1] and [T].
    """

    preset: Preset
    plan: str
    images: int
    guided: bool
    scale: float
    sigmas: np.ndarray
    timesteps: np.ndarray
    inputs: dict[str, np.ndarray]


def setting(
    bundle: Bundle, preset: Preset, plan: str, *, seed: int, images: int = 1, scale: float = 4.5, guided: bool = True
) -> Setting:
    """Noise, text and weights drawn from `seed`, and a schedule like a shifted one."""
    contract = bundle.manifest.geometry.contract
    layout = bundle.manifest.call.guidance.layout
    guided = guided and layout != "none"
    rows = 2 * images if guided else images
    drawn = example_inputs(contract.model_copy(update={"batch": rows}), contract.tokens, B=rows, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: _in_fp32(drawn[name]) for name in contract.conditioning}
    inputs["latents"] = _in_fp32(drawn[HIDDEN_STATES][:images])
    if contract.text_input is not None:
        inputs["token_weights"] = torch.rand(images, contract.text_tokens, generator=generator).numpy()
    T = len(plan)
    ramp = np.linspace(1, 1 / T, T, dtype=np.float32)
    sigmas = np.append(2 * ramp / (1 + ramp), 0).astype(np.float32)
    limit = next(spec.limit for spec in contract.inputs if spec.name == "timestep") or 1.0
    return Setting(
        preset, plan, images, guided, scale, sigmas, (sigmas[:-1] * limit * 0.999).astype(np.float32), inputs
    )


def _in_fp32(tensor: torch.Tensor) -> np.ndarray:
    """As the C ABI takes it, whatever the engine computes in."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def walk(bundle: Bundle, given: Setting, *, watched: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Latents and, where it is `watched`, focus index after every step."""
    manifest, T = bundle.manifest, len(given.plan)
    geometry, guidance = manifest.geometry, manifest.call.guidance
    policy = from_name(given.preset.policy, given.preset.options)
    plan = Plan(given.plan, manifest.sparse_fractions, manifest.range_shares)
    clock = given.sigmas[:-1].tolist() if given.preset.clock == "sigma" else [float(i) for i in range(T)]
    weights = given.inputs.get("token_weights") if policy.affinity_steps(plan) else None
    denoiser = Denoiser(bundle.session(), geometry.latents, manifest.bucket_fractions, guidance)
    denoiser.start(Run(policy, plan, clock, None if weights is None else torch.from_numpy(weights)))
    latents = torch.from_numpy(given.inputs["latents"])
    for i in range(T):
        uncond, cond = (
            patchify(half, geometry.latents) for half in _halves(denoiser, guidance.layout, given, latents, i)
        )
        if given.guided:
            whole = guided(uncond, cond, given.scale)
            if guidance.rescaled:
                length, wanted = (torch.norm(each, dim=-1, keepdim=True) for each in (whole, cond))
                whole = whole * (wanted / length)
            cond = with_free_channels(whole, cond, guidance.channels, geometry.latents.out_channels)
        prediction = unpatchify(cond, geometry.latents)
        if not geometry.latents.packed:
            prediction = prediction[:, : geometry.latents.out_channels]
        latents = latents + float(given.sigmas[i + 1] - given.sigmas[i]) * prediction
        if not watched:
            yield latents.numpy(), None
            continue
        report = denoiser.report()
        sparse = report.steps[-1].kind is StepKind.SPARSE
        yield latents.numpy(), report.focus_index.numpy() if sparse and report.focus_index is not None else None


def _halves(
    denoiser: Denoiser, layout: str, given: Setting, latents: torch.Tensor, i: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer says of both halves, the unconditional first."""
    contract = denoiser.session.contract
    shared = {spec.name for spec in contract.inputs if spec.shape[0] != "B"}
    types = {spec.name: torch_dtype(spec.dtype) for spec in contract.inputs}
    conditioning: dict[str, Any] = {
        name: torch.from_numpy(given.inputs[name]).to(types[name]) for name in contract.conditioning
    }

    def call(rows: slice, branch: str, *, paired: bool) -> torch.Tensor:
        own = {name: t if name in shared else t[rows] for name, t in conditioning.items()}
        x = torch.cat([latents, latents]) if paired else latents
        timestep = torch.full((x.shape[0],), float(given.timesteps[i]))
        with torch.no_grad():
            made = denoiser.step(i, StepInputs(x.to(types[HIDDEN_STATES]), timestep, own, paired), branch=branch)
            return made.float()

    if not given.guided:
        only = call(slice(None), CONDITIONAL, paired=False)
        return only, only
    if layout == "separate":
        cond = call(slice(0, given.images), CONDITIONAL, paired=False)
        return call(slice(given.images, None), UNCONDITIONAL, paired=False), cond
    first, second = call(slice(None), CONDITIONAL, paired=True).chunk(2)
    return (first, second) if layout == "uncond_cond" else (second, first)
