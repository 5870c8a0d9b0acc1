"""The focus step: a diffusers transformer turned into a function of focus tokens and a cached background.

    focus_step(latents, t, text, focus_index[B,n], background K/V[m]) -> prediction[B,n], affinity[B,n], fresh K/V[n]

n = N with m = 0 is the dense model. The blocks, norms, embeddings and weights are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from accelaes_export.backbones.base import Backbone
from accelaes_export.contract import GraphContract
from accelaes_export.dtypes import torch_dtype
from accelaes_export.graph.processors import JointFocusProcessor
from accelaes_export.graph.state import FocusState


class FocusStep(torch.nn.Module):
    """A transformer with focus processors installed. `restore()` gives the model its own processors back.

    Args:
        model: the diffusers transformer, in eval mode.
        backbone: its family's adapter.
        affinity_layers: block indices whose text attention makes the affinity (Eq. 6).
    """

    def __init__(self, model: Any, backbone: Backbone, affinity_layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.backbone = backbone
        attentions = backbone.attentions(model)
        self._slots = len(attentions)
        self._affinity_slots = frozenset(
            slot for slot, site in enumerate(attentions) if site.layer in affinity_layers and site.joint
        )
        self._sites = [
            (site.module, site.module.processor, JointFocusProcessor(s)) for s, site in enumerate(attentions)
        ]
        self.install()

    def install(self) -> None:
        """Put the focus processors in; done by the constructor."""
        for module, _, focus in self._sites:
            module.set_processor(focus)

    def restore(self) -> None:
        """Put the model's own attention processors back."""
        for module, original, _ in self._sites:
            module.set_processor(original)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [B, C, Hl, Wl]
        timestep: torch.Tensor,  # [B]
        conditioning: tuple[torch.Tensor, ...],
        focus_index: torch.Tensor,  # [B, n]
        token_weights: torch.Tensor,  # [B, M]
        background: tuple[torch.Tensor, ...],  # k_bg, v_bg of every slot, [B, Hkv, m, hd]
    ) -> tuple[torch.Tensor, ...]:
        """Returns focus_prediction [B, n, p·p·C], affinity [B, n] and the fresh k, v of every slot."""
        pairs = [(background[2 * slot], background[2 * slot + 1]) for slot in range(self._slots)]
        state = FocusState(focus_index, token_weights, pairs, self._affinity_slots)
        prediction = self.backbone.forward(self.model, hidden_states, timestep, conditioning, state)
        return prediction, state.affinity, *state.fresh

    def run(self, contract: GraphContract, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same call by tensor names, as a session sees it."""
        outputs = self(*as_arguments(contract, inputs))
        return {spec.name: tensor for spec, tensor in zip(contract.outputs, outputs, strict=True)}


def as_arguments(contract: GraphContract, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Named values in the order and nesting of `FocusStep.forward`."""
    return (
        inputs["hidden_states"],
        inputs["timestep"],
        tuple(inputs[name] for name in contract.conditioning),
        inputs["focus_index"],
        inputs["token_weights"],
        tuple(inputs[f"{entry.name}_bg"] for entry in contract.cache),
    )


def example_inputs(
    contract: GraphContract,
    n: int,
    *,
    B: int | None = None,
    M: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Random inputs of a step with `n` focus tokens, each a tensor of its own (an exporter merges shared ones).

    Every row has its own ascending focus set; latents and K/V are standard normal, timesteps lie in [1, 1000].
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = contract.sizes(n, B, M)
    inputs = {}
    for spec in contract.inputs:
        shape = spec.sized(sizes)
        if spec.name == "focus_index":
            rows = [torch.randperm(contract.tokens, generator=generator)[:n].sort().values for _ in range(shape[0])]
            tensor = torch.stack(rows)
        elif spec.name == "timestep":
            tensor = 1 + 999 * torch.rand(shape, generator=generator)
        elif spec.name == "token_weights":
            tensor = torch.rand(shape, generator=generator)
        else:
            tensor = torch.randn(shape, generator=generator)
        inputs[spec.name] = tensor.to(device=device, dtype=torch_dtype(spec.dtype))
    return inputs


def count_flops(step: FocusStep, contract: GraphContract, n: int) -> int:
    """FLOPs of one call with n focus tokens at B = 2 · batch, counted by torch's counter over the traced operators.

    Runs on the model's device; use a model on the meta device to count without computing.
    """
    device = next(step.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in example_inputs(contract, n).items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        step.run(contract, inputs)
    return counter.get_total_flops()
