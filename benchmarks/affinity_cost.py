"""What the affinity costs of a dense step, by count: FLOPs, and the bytes that its scores move.

python -m benchmarks.affinity_cost
"""

from __future__ import annotations

from accelaes_export import recipes
from accelaes_export.backbones import backbone
from accelaes_export.backbones.checkpoints import complete_config, empty_transformer
from accelaes_export.dtypes import torch_dtype
from accelaes_export.graph.focus_step import FocusStep, count_flops
from accelaes_export.graph.tensors import affinity_layers, graph_contract
from accelaes_export.recipes import BuildRecipe

FLOPS, BYTES = 989e12, 3.35e12  # an H100 SXM's dense fp16 rate and memory bandwidth, as NVIDIA publishes them


def main() -> None:
    print("| model | affinity's blocks | of the FLOPs | scores moved | at an H100's published rates, of the step |")
    print("|---|---|---|---|---|")
    for name in ("sd3", "lumina-next", "flux-dev"):
        recipe = recipes.load(name)
        adapter = backbone(recipe.family)
        model = empty_transformer(adapter, complete_config(adapter, recipe.architecture()))
        layers = affinity_layers(adapter, model, recipe.affinity_every, recipe.affinity_blocks)
        with_all, with_one = dense_flops(recipe, layers), dense_flops(recipe, layers[:1])
        flops = (with_all - with_one) * len(layers) / (len(layers) - 1)
        rows, heads = (2 if adapter.guidance.pairs else 1) * recipe.batch, model.config.num_attention_heads
        N = adapter.latents(model.config, recipe.resolution, recipe.vae_scale).tokens
        # In half precision, written by the product and read by the softmax that takes the weighted sum at once.
        moved = 2 * 2 * rows * heads * N * recipe.text_tokens * len(layers)
        share = (flops / FLOPS + moved / BYTES) / (with_all / FLOPS)
        print(f"| {name} | {len(layers)} | {flops / with_all:.2%} | {moved / 1e9:.2f} GB | {share:.2%} |")


def dense_flops(recipe: BuildRecipe, layers: tuple[int, ...]) -> int:
    """Of one dense step whose affinity comes from these blocks."""
    adapter = backbone(recipe.family)
    config = complete_config(adapter, recipe.architecture())
    model = empty_transformer(adapter, config).to(torch_dtype(recipe.dtype))
    latents = adapter.latents(config, recipe.resolution, recipe.vae_scale)
    contract = graph_contract(
        adapter,
        model,
        latents,
        dtype=recipe.dtype,
        batch=recipe.batch,
        fractions=(0.5,),
        text_tokens=recipe.text_tokens,
        dynamic_text=True,
    )
    return count_flops(FocusStep(model, adapter, contract, latents, layers).eval(), contract.tokens)


if __name__ == "__main__":
    main()
