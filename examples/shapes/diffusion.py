"""Rectified-flow training of the denoiser: one step, its optimizers, the running average and its saved state.

Every step draws its randomness from (seed, step) alone: a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from examples.shapes.denoiser import Denoiser, Ids
from examples.shapes.muon import Muon

BATCH = 32
MUON_RATE = 0.02
ADAM_RATE = 2e-3
WARMUP = 100
AVERAGE = 0.998  # decay of the running average of the weights
CAPTION_DROPOUT = 0.1
TIME_SHIFT = 2.0


class Training:
    """A denoiser in training: weights, their running average, both optimizers and the step reached."""

    def __init__(self, denoiser: Denoiser, empty: Ids, steps: int, seed: int) -> None:
        self.denoiser = denoiser.train()
        self.average = copy.deepcopy(denoiser).requires_grad_(False)
        denoiser.begin_training()
        self.empty, self.steps, self.seed, self.step = empty, steps, seed, 0
        matrices, others = [], []
        blocks = tuple(f"transformer.{name}." for name in denoiser.block_lists)
        for name, parameter in denoiser.named_parameters():
            in_block = name.startswith(blocks) and parameter.ndim == 2
            (matrices if in_block else others).append(parameter)
        self.optimizers = {
            "muon": Muon(matrices, lr=MUON_RATE),
            "adam": torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.0),
        }
        self.rates = {"muon": MUON_RATE, "adam": ADAM_RATE}

    def rate_factor(self) -> float:
        """Short warm-up, then half a cosine down to one hundredth."""
        warm = min(1.0, (self.step + 1) / min(WARMUP, max(1, self.steps // 10)))
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps)))

    def advance(self, latents: torch.Tensor, ids: Ids) -> float:
        """One step on a batch drawn from latents [count, 4, 24, 24] and as many token ids; the loss."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = latents[rows].float()
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        prompts = {name: torch.where(dropped[:, None], self.empty[name], own[rows]) for name, own in ids.items()}
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator))
        sigma = TIME_SHIFT * sigma / (1 + (TIME_SHIFT - 1) * sigma)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = clean.lerp(noise, sigma[:, None, None, None])
        predicted, wanted = self.denoiser.lesson(noisy, noise - clean, sigma, prompts, generator)
        loss = (predicted - wanted).square().mean()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        factor = self.rate_factor()
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor
            optimizer.step()
        # A young average would remember the start for long: let it grow old with the run.
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.denoiser.parameters()), 1 - decay)
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Everything needed to go on, as one safetensors file, replaced atomically."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": tensor for key, tensor in state.items()}
        written = path.with_suffix(".new")
        run = {"step": self.step, "steps": self.steps, "seed": self.seed}
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, written, {"run": json.dumps(run)})
        written.replace(path)

    def resume(self, path: Path) -> None:
        """Take up a saved state. Raises ValueError if it belongs to a run of other length or seed."""
        with safe_open(path, "pt") as file:
            run = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if (run["steps"], run["seed"]) != (self.steps, self.seed):
            raise ValueError(
                f"{path} holds a run of {run['steps']} steps with seed {run['seed']}, not of {self.steps} with "
                f"{self.seed}; remove it to start anew"
            )
        for prefix, module in (("weights.", self.denoiser), ("average.", self.average)):
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"{name}."):
                    _, index, field = key.split(".")
                    state.setdefault(int(index), {})[field] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step = run["step"]
