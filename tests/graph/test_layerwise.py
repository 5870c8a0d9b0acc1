"""The layer-wise step against the unmodified diffusers model whose parts' outputs are replaced row by row.

The reference knows nothing of it: hooks on the model's own modules rank the rows of what comes in, and put old rows in
the place of those that aren't among the first.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from accelaes_export.backbones.base import AttentionSite, PartSite
from accelaes_export.contract.patches import patchify
from accelaes_export.contract.tensors import NEW
from accelaes_export.errors import InputError
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import FocusStep, count_flops, example_inputs
from accelaes_export.graph.layerwise import layerwise_contract
from accelaes_export.graph.ranking import TocaScore, toca_score, unlike_score
from tests.families import FAMILIES, cases
from tests.thorough import thorough_but

RANKINGS = ("norm", "similarity", "toca")


def step_of(family, variant, ranking, **more):
    """A layer-wise step, and the model it is of."""
    tiny = FAMILIES[family]
    model = tiny.model(variant)
    full = tiny.step(model, variant, ranking=ranking, **more)
    full.restore()
    contract = layerwise_contract(full.contract)
    return FocusStep(model, tiny.backbone, contract, full.latents, ()).eval()


def call(step, inputs):
    return {name: inputs[name] for name in ("hidden_states", "timestep", *step.contract.conditioning)}


@pytest.mark.parametrize(("family", "variant"), cases())
def test_where_all_parts_compute_all_tokens_it_is_the_diffusers_model(family, variant):
    step = step_of(family, variant, "similarity")
    inputs = example_inputs(step.contract, step.contract.tokens, B=1)
    with torch.no_grad():
        found = step.run(inputs)["focus_prediction"]
        step.restore()
        expected = patchify(step.backbone.reference(step.model, call(step, inputs), step.latents), step.latents)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


class Replaced:
    """Hooks on a diffusers model by which every part takes old rows for the tokens it doesn't compute."""

    def __init__(self, step, inputs, score):
        self.step, self.inputs, self.score = step, inputs, score
        self.chosen, self.outputs, self.handles = {}, {}, []
        parts, leading = iter(step.contract.own_parts.parts), []
        for site in step.backbone.sites(step.model):
            leading.append(site)
            if isinstance(site, PartSite) and site.name:
                self._hook(next(parts).label, leading, site.text_first)
                leading = []

    def _hook(self, label, sites, text_first):
        M = self.step.contract.text_tokens if text_first else 0

        def enter(_, args, kwargs):
            if label not in self.chosen:
                tokens = (args[0] if args else kwargs["hidden_states"])[:, M:]
                n = self.inputs[f"places.{label}"].shape[0]
                scores = self.score(label, tokens).double().numpy()
                order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
                mask = np.zeros(scores.shape, dtype=bool)
                np.put_along_axis(mask, order, True, axis=1)
                self.chosen[label] = torch.from_numpy(mask)

        def leave(_, __, computed):
            old = self.inputs[f"cache.{label}"]
            own = torch.where(self.chosen[label][..., None], computed[:, M:], old)
            self.outputs[f"cache.{label}"] = own
            return torch.cat([computed[:, :M], own], dim=1)

        for site in sites:
            if isinstance(site, AttentionSite) or site.narrows:
                self.handles.append(site.module.register_forward_pre_hook(enter, with_kwargs=True))
            if isinstance(site, PartSite) and site.name:
                self.handles.append(site.module.register_forward_hook(leave))

    def run(self):
        try:
            with torch.no_grad():
                sample = self.step.backbone.reference(self.step.model, call(self.step, self.inputs), self.step.latents)
                return patchify(sample, self.step.latents)
        finally:
            for handle in self.handles:
                handle.remove()


def counts_for(step, seed):
    """Some tokens in every part, none in one, all in another."""
    N, parts = step.contract.tokens, len(step.contract.own_parts.parts)
    counts = np.random.default_rng(seed).integers(1, N, size=parts)
    counts[seed % parts], counts[(seed + 1) % parts] = 0, N
    return [int(count) for count in counts]


@pytest.mark.parametrize(("family", "variant"), cases())
@pytest.mark.parametrize("ranking", ["norm", "similarity"])
def test_every_part_computes_the_first_tokens_of_its_ranking_and_keeps_what_it_made_of_the_others(
    family, variant, ranking
):
    step = step_of(family, variant, ranking)
    inputs = example_inputs(step.contract, step.contract.tokens, B=2, counts=counts_for(step, 3), seed=4)
    with torch.no_grad():
        found = step.run(inputs)
    step.restore()

    def score(label, tokens):
        if ranking == "norm":
            return tokens.double().norm(dim=-1)
        before = inputs[f"input.{label}"].double()
        return -torch.nn.functional.cosine_similarity(tokens.double(), before, dim=-1)

    reference = Replaced(step, inputs, score)
    expected = reference.run()
    torch.testing.assert_close(found["focus_prediction"], expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    for name, tensor in reference.outputs.items():
        torch.testing.assert_close(found[name + NEW], tensor, rtol=1e-4, atol=1e-5 * tensor.abs().max())


@pytest.mark.parametrize("family", ["sd3", "pixart", "flux", "wan"])
def test_tocas_ranking_forgets_no_token_and_computes_as_many_as_it_is_asked_for(family):
    step = step_of(family, next(iter(FAMILIES[family].variants)), "toca")
    counts = counts_for(step, 2)
    inputs = example_inputs(step.contract, step.contract.tokens, B=2, counts=counts, seed=4)
    with torch.no_grad():
        found = step.run(inputs)
    for part, count in zip(step.contract.own_parts.parts, counts, strict=True):
        before, after = inputs[f"reused.{part.label}"], found[f"reused.{part.label}{NEW}"]
        assert ((after == 0).sum(dim=1) == count).all()
        assert torch.equal(after[after > 0], (before + 1)[after > 0])
        kept = (after > 0)[..., None].expand_as(inputs[f"cache.{part.label}"])
        old, new = inputs[f"cache.{part.label}"], found[f"cache.{part.label}{NEW}"]
        assert torch.equal(new[kept], old[kept])
        assert count == 0 or not torch.equal(new, old)
    step.restore()


def test_tocas_score_is_the_papers_sum_with_a_bonus_for_the_largest_of_each_square():
    """Eq. 10 by hand on 5 x 3 tokens in squares of 2: the last row and column are squares of their own."""
    rng = np.random.default_rng(0)
    entropy, reused = rng.uniform(1, 3, (2, 15)), rng.integers(0, 4, (2, 15)).astype(float)
    weights = TocaScore(entropy=1.0, reuse=0.1, bonus=0.4, side=2)
    found = toca_score(torch.from_numpy(entropy), torch.from_numpy(reused), (5, 3), weights).numpy()
    plain = entropy / np.linalg.norm(entropy, axis=1, keepdims=True) + 0.1 * reused
    for row in range(2):
        grid = plain[row].reshape(5, 3)
        for y in range(5):
            for x in range(3):
                square = grid[y // 2 * 2 : y // 2 * 2 + 2, x // 2 * 2 : x // 2 * 2 + 2]
                expected = grid[y, x] + 0.4 * (grid[y, x] == square.max())
                assert found[row, 3 * y + x] == pytest.approx(expected)


def test_similar_tokens_are_told_apart_where_fp32_has_one_cosine_for_all():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1, 8, 64, generator=generator)
    changed = before + torch.linspace(1, 2, 8)[None, :, None] * 1e-4 * torch.randn(1, 8, 64, generator=generator)
    exact = 1 - torch.nn.functional.cosine_similarity(changed.double(), before.double(), dim=-1)
    assert unlike_score(changed, before).argsort().tolist() == exact.argsort().tolist()
    plain = 1 - torch.nn.functional.cosine_similarity(changed, before, dim=-1)
    assert plain.argsort().tolist() != exact.argsort().tolist(), "the case is one"


@pytest.mark.parametrize("family", ["dit"])
def test_a_model_without_text_has_no_ranking_by_its_attention_to_it(family):
    with pytest.raises(InputError, match="ToCa ranks tokens by their attention to the text, and dit reads none"):
        step_of(family, next(iter(FAMILIES[family].variants)), "toca")


EXPORTED = [("pixart", "toca"), ("sd3", "norm"), ("flux", "norm")]


@pytest.mark.parametrize(
    ("family", "ranking"),
    thorough_but(EXPORTED, [(f, r) for f in FAMILIES for r in RANKINGS if (f, r) != ("dit", "toca")]),
)
def test_onnx_runtime_takes_any_counts_none_among_them(family, ranking, tmp_path):
    step = step_of(family, next(iter(FAMILIES[family].variants)), ranking)
    contract, parts = step.contract, len(step.contract.own_parts.parts)
    session = onnxruntime.InferenceSession(str(save_onnx(trace(step), contract, tmp_path)))
    N = contract.tokens
    tried = [[0] * parts, [N] * parts, [N if k % 2 else 0 for k in range(parts)]]
    # In between, where a score's last bit decides, only the norm of what comes in is sure to rank alike.
    tried += [counts_for(step, seed) for seed in (0, 1)] if ranking == "norm" else []
    for k, counts in enumerate(tried):
        inputs = example_inputs(contract, N, B=1 + k % 2, counts=counts, seed=k)
        with torch.no_grad():
            expected = step.run(inputs)
        names = [value.name for value in session.get_inputs()]
        for value, found in zip(
            session.get_outputs(), session.run(None, {name: inputs[name].numpy() for name in names}), strict=True
        ):
            scale = expected[value.name].abs().max().item()
            np.testing.assert_allclose(found, expected[value.name].numpy(), rtol=1e-4, atol=2e-5 * scale)


def test_a_part_that_computes_nothing_costs_nothing_but_the_keys_others_need():
    """PixArt's self-attention makes no keys then; SD3's makes them for the text, which is always computed."""
    for family, keys in (("pixart", True), ("sd3", False)):
        step = step_of(family, next(iter(FAMILIES[family].variants)), "norm")
        N, parts = step.contract.tokens, step.contract.own_parts.parts
        whole = count_flops(step, N)
        attention = next(k for k, part in enumerate(parts) if part.name == "attn")
        assert parts[attention].keys is keys
        few = count_flops(step, N, counts=[1 if k == attention else N for k in range(len(parts))])
        none = count_flops(step, N, counts=[0 if k == attention else N for k in range(len(parts))])
        assert none < few < whole
        per_token = (whole - few) / (N - 1)
        assert (few - none > 2 * per_token) is keys
