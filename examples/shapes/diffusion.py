"""Rectified-flow training of the denoiser: one step, its optimizers, the running average and its saved state.

Every step draws its randomness from (seed, step) alone: a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from examples.shapes.muon import Muon
from examples.shapes.pipeline import Denoiser

BATCH = 32
MUON_RATE = 0.02
ADAM_RATE = 2e-3
WARMUP = 100
AVERAGE = 0.998  # decay of the running average of the weights
CAPTION_DROPOUT = 0.1
TIME_SHIFT = 2.0
T5_LENGTH = 256  # the pipeline's default max_sequence_length


class RepeatedTokenAttention:
    """Joint attention in which the last text token stands for many equal ones.

    Without a T5 the pipeline appends `max_sequence_length` zero vectors to the text. They carry no position and
    so stay equal to each other through all blocks; `count` equal keys act as one with log(count) added to its
    logit. `key_bias` [B, 1, 1, N + M] is that logarithm on the last key and zero elsewhere.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # [B, N, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: None = None,  # diffusers always hands one over
        *,
        key_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states.shape[1]
        image = (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)
        text = (
            (attn.add_q_proj, attn.norm_added_q),
            (attn.add_k_proj, attn.norm_added_k),
            (attn.add_v_proj, None),
        )
        q, k, v = (
            torch.cat([_heads(hidden_states, attn.heads, *i), _heads(encoder_hidden_states, attn.heads, *t)], dim=2)
            for i, t in zip(image, text, strict=True)
        )  # [B, H, N + M, hd] each
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=key_bias).transpose(1, 2).flatten(2)
        hidden_states, encoder_hidden_states = attn.to_out[0](out[:, :tokens]), out[:, tokens:]
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


def _heads(states: torch.Tensor, heads: int, projection: nn.Module, norm: nn.Module | None) -> torch.Tensor:
    split = projection(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)


def key_bias(counts: torch.Tensor, tokens: int) -> torch.Tensor:
    """log(count) on the last of `tokens` keys, [B, 1, 1, tokens]; a count of zero hides the key."""
    bias = torch.zeros(len(counts), 1, 1, tokens)
    bias[:, 0, 0, -1] = torch.where(counts > 0, counts.clamp(min=1).log(), -1e4)
    return bias


def predict_velocity(
    denoiser: Denoiser, latents: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """The transformer's prediction [B, 4, 24, 24] with `counts` [B] zero tokens in the place of T5's.

    The transformer must hold `RepeatedTokenAttention`.
    """
    states, pooled = denoiser.encode_prompts(ids)
    states = torch.cat([states, states.new_zeros(len(states), 1, states.shape[-1])], dim=1)
    tokens = latents[0, 0].numel() // denoiser.transformer.config.patch_size**2 + states.shape[1]
    return denoiser.transformer(
        latents,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=sigma * 1000,
        joint_attention_kwargs={"key_bias": key_bias(counts, tokens)},
        return_dict=False,
    )[0]


class Training:
    """A denoiser in training: weights, their running average, both optimizers and the step reached."""

    def __init__(self, denoiser: Denoiser, empty_ids: torch.Tensor, steps: int, seed: int) -> None:
        self.denoiser = denoiser.train()
        self.average = copy.deepcopy(denoiser).requires_grad_(False)
        denoiser.transformer.set_attn_processor(RepeatedTokenAttention())
        self.empty_ids, self.steps, self.seed, self.step = empty_ids, steps, seed, 0
        matrices, others = [], []
        for name, parameter in denoiser.named_parameters():
            in_block = name.startswith("transformer.transformer_blocks.") and parameter.ndim == 2
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

    def advance(self, latents: torch.Tensor, ids: torch.Tensor) -> float:
        """One step on a batch drawn from latents [count, 4, 24, 24] and token ids [count, 32]; the loss."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean, prompt = latents[rows].float(), ids[rows]
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        prompt = torch.where(dropped[:, None], self.empty_ids, prompt)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator))
        sigma = TIME_SHIFT * sigma / (1 + (TIME_SHIFT - 1) * sigma)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = clean.lerp(noise, sigma[:, None, None, None])
        velocity = predict_velocity(self.denoiser, noisy, sigma, prompt, _random_counts(generator))
        loss = (velocity - (noise - clean)).square().mean()
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


def _random_counts(generator: torch.Generator) -> torch.Tensor:
    """How many zero tokens the pipeline might append, [B]: mostly its default, else any, often few."""
    kind = torch.rand(BATCH, generator=generator)
    spread = torch.rand(BATCH, generator=generator)
    small = torch.floor(T5_LENGTH**spread) - 1  # log-uniform over 0 ... 255
    even = torch.floor((T5_LENGTH + 1) * spread)
    return torch.where(kind < 0.5, torch.full_like(kind, T5_LENGTH), torch.where(kind < 0.75, small, even))
