"""What the affinity costs of the dense step that makes it, by count: FLOPs, and the bytes that its scores move.

python -m benchmarks.affinity_cost
"""

from __future__ import annotations

from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config, empty_transformer
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.graph.focus_step import FocusStep, count_flops
from accelaes_export.graph.tensors import affinity_layers, graph_contract
from accelaes_export.recipes import BuildRecipe

FLOPS, BYTES = 989e12, 3.35e12  # an H100 SXM's dense fp16 rate and memory bandwidth, as NVIDIA publishes them


def main() -> None:
    print("| model | affinity's blocks | of the FLOPs | scores moved | at an H100's published rates, of the step |")
    print("|---|---|---|---|---|")
    for name in ("sd3", "lumina-next", "flux-dev"):
        recipe = recipes.load(name)
        backbone = backbone_of(recipe.family)
        model = empty_transformer(backbone, complete_config(backbone, recipe.architecture()))
        layers = affinity_layers(backbone, model, recipe.affinity_every, recipe.affinity_blocks)
        step = dense_step(recipe, layers)
        N = step.contract.tokens
        without, with_all = (count_flops(step, N, observed=observed) for observed in (False, True))
        rows, heads = (2 if backbone.guidance.pairs else 1) * recipe.batch, model.config.num_attention_heads
        # In half precision, written by the product and read by the softmax that takes the weighted sum at once.
        moved = 2 * 2 * rows * heads * N * recipe.text_tokens * len(layers)
        share = ((with_all - without) / FLOPS + moved / BYTES) / (without / FLOPS)
        print(f"| {name} | {len(layers)} | {with_all / without - 1:.2%} | {moved / 1e9:.2f} GB | {share:.2%} |")


def dense_step(recipe: BuildRecipe, layers: tuple[int, ...]) -> FocusStep:
    """On the meta device; its affinity comes from these blocks."""
    backbone = backbone_of(recipe.family)
    config = complete_config(backbone, recipe.architecture())
    model = empty_transformer(backbone, config).to(torch_dtype(recipe.dtype))
    latents = backbone.latents(config, recipe.resolution, recipe.vae_scale)
    contract = graph_contract(
        backbone,
        model,
        latents,
        dtype=recipe.dtype,
        batch=recipe.batch,
        fractions=(0.5,),
        text_tokens=recipe.text_tokens,
        dynamic_text=True,
    )
    return FocusStep(model, backbone, contract, latents, layers).eval()


if __name__ == "__main__":
    main()
