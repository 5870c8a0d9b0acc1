"""Policies' programs as ONNX graphs: over runs of random steps they give what Python's own functions give."""

from __future__ import annotations

import onnx
import pytest
import torch

from accelaes_export.backends import backend
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.patches import picture_of
from accelaes_export.contract.tensors import NEW
from accelaes_export.graph.policy_export import Sizes, policy_graphs, save_programs
from accelaes_export.policies import (
    RAS,
    AccelAes,
    Coefficients,
    Drift,
    EasyCache,
    SpatialGuidance,
    StepCache,
    TaylorSeer,
    TeaCache,
    TokenClass,
    from_name,
)
from accelaes_export.policies.programs import nothing_seen, programs_of, state_shapes

LATENTS = Latents(channels=4, out_channels=4, height=8, width=6, patch=2, vae_scale=8)
N, w = LATENTS.tokens, LATENTS.token_width
SIZES = Sizes(B=4, b=2, N=N, w=w)

FITTED = Coefficients(
    tuple(1 - k / 12 for k in range(13)),
    4.5,
    tuple(
        tuple(
            TokenClass(age, gap, gap, (1.5, -0.5 * age, 0.1 * i), (1.2, 0.3, -0.5)) for age in (0, 1) for gap in (0, 1)
        )
        for i in range(12)
    ),
)
# Every option that is in some program, at least once, in both forms.
POLICIES = {
    "linear, carried on": StepCache(theta=0.3, calibrated=True),
    "taylor": TaylorSeer(order=2),
    "regions, soft": AccelAes(spatial_cfg=SpatialGuidance(5.0, 2.0, 1.3), reach=0.7),
    "regions, hard": AccelAes(spatial_cfg=SpatialGuidance(5.0, 2.0), order=0, cache_reach=1.5),
    "drift": Drift(budget=12, cache_reach=0.5),
    "drift, masked": Drift(trend=0.6, mask_weight=0.5, stale_reach=None, calibrated=False, order=2),
    "ras": RAS(interval=2, order=1, cache_reach=1.0),
    "ras, masked": RAS(metric="norm", mask_share=0.25),
    "teacache": TeaCache(threshold=0.4, coefficients=(0.5, 1.0, 0.1)),
    "easycache": EasyCache(threshold=0.5, warmup=2),
    "learned": from_name("drift", {"budget": 8, "plan": "DDDbb.b.bDD.", "learned": FITTED}),
}
CASES = [(name, False) for name in POLICIES] + [("drift", True)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every case's eager programs, graphs, and opened ONNX files. Exported together, which takes as long as one."""
    folder = tmp_path_factory.mktemp("programs")
    programs, graphs = {}, {}
    for name, component in CASES:
        guidance = Guidance(layout="uncond_cond", channels=3 if name == "regions, soft" else None)
        picture = picture_of(LATENTS, guidance, component=component)
        programs[name, component] = programs_of(POLICIES[name], picture)
        graphs[name, component] = policy_graphs(programs[name, component], SIZES)
    save_programs({graph.fingerprint: graph for own in graphs.values() for graph in own}, folder)
    opened = {
        case: {
            graph.name: backend("onnxruntime").open_graph(
                (folder / f"{graph.fingerprint}.onnx",), graph.inputs, graph.outputs, torch.device("cpu")
            )
            for graph in own
        }
        for case, own in graphs.items()
    }
    return programs, graphs, opened, folder


class Side:
    """One of two that do the same: what is known, and the programs that change it."""

    def __init__(self, programs, known):
        self.programs, self.known = programs, known

    def ask(self, name, tensors):
        return {output.removesuffix(NEW): t for output, t in self.programs[name]({**self.known, **tensors}).items()}

    def change(self, name, tensors):
        found = self.ask(name, tensors)
        self.known = {**self.known, **found}
        return found


def sides(exported, case, images):
    programs, _, opened, _ = exported
    policy = POLICIES[case[0]]
    sizes = {"B": 2 * images, "N": N, "w": w}
    known = {n: torch.zeros([sizes[d] for d in shape]) for n, shape in state_shapes(policy.extrapolation).items()}
    if policy.gate() is not None:
        known |= nothing_seen(policy.gate(), torch.zeros(2 * images, *LATENTS.shape), torch.zeros(2 * images, N, w))
    eager = {program.name: program.compute for program in programs[case]}
    return Side(eager, known), Side(opened[case], known)


def same(found, wanted, what):
    assert found.keys() <= wanted.keys(), what
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-5, atol=1e-5, equal_nan=True), (what, name)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_of_random_steps_goes_the_same_way(exported, case, images):
    eager, graphs = sides(exported, case, images)
    generator, rows = torch.Generator().manual_seed(7), 2 * images
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    affinity, conditional = draw(images, N).abs(), torch.arange(rows).ge(images).float()
    mask = (affinity > affinity.median()).float()
    for i, sparse in enumerate([False, False, True, False, True, True, True]):
        now, kind = 10.0 - 1.5 * i if i % 2 else 10.0 - 1.25 * i, "advance_focus" if sparse else "advance"
        if kind not in eager.programs:
            continue
        if case[0] == "learned":
            now = float(i)  # coefficients are looked up by the step
        running = (draw(rows, N) > 0).float() if sparse else torch.ones(rows, N)
        computed = draw(rows, N, w)
        if not case[1]:
            computed = torch.where(running[..., None] > 0, computed, eager.known["prediction.0"])
        if "decide" in eager.programs:
            given = {"latents": draw(rows, *LATENTS.shape).cumsum(-1), "step": i}
            wanted, found = (side.change("decide", given) for side in (eager, graphs))
            same(found, wanted, (i, "decide"))
        if "observe" in eager.programs:
            same(
                graphs.change("observe", {"prediction": computed}), eager.change("observe", {"prediction": computed}), i
            )
        if "score" in eager.programs and i >= 2:
            of_images = [{n: t[:images] for n, t in side.known.items()} for side in (eager, graphs)]
            given = {"affinity": affinity, "mask": mask, "now": now}
            wanted = eager.ask("score", {**of_images[0], **given})
            same(graphs.ask("score", {**of_images[1], **given}), wanted, (i, "score"))
        if "carry" in eager.programs:
            same(graphs.ask("carry", {"now": now}), eager.ask("carry", {"now": now}), (i, "carry"))
        given = {"computed": computed, "running": running, "cached": running * (i != 3), "now": now}
        same(graphs.change(kind, given), eager.change(kind, given), (i, kind))
        given = {"target": now if case[0] == "learned" else now - 0.4, "conditional": conditional}
        wanted, found = (side.ask("extrapolate", given) for side in (eager, graphs))
        same(found, wanted, (i, "extrapolate"))
        halves = dict(zip(("uncond", "cond"), wanted["predicted"].chunk(2), strict=True))
        for name, more in (("guide", {"scale": 4.5}), ("guide_by_region", {"mask": mask})):
            if name in eager.programs:
                same(graphs.ask(name, {**halves, **more}), eager.ask(name, {**halves, **more}), (i, name))


def test_nothing_is_kept_that_no_answer_depends_on(exported):
    kept = {
        name: {spec.name for graph in own for spec in graph.outputs if spec.name.endswith(NEW)}
        for (name, _), own in exported[1].items()
    }
    assert kept["teacache"] >= {"prediction.0'"} and "clock.0'" not in kept["teacache"]
    assert kept["linear, carried on"] == {
        *("prediction.0'", "prediction.1'", "clock.0'", "clock.1'"), *("known'", "agreed'", "foreseen'")
    }  # fmt: skip
    assert "ran'" in kept["drift"] and "ran'" not in kept["ras"] and "drops'" in kept["ras"]


def test_programs_that_do_the_same_are_one_file(exported):
    _, graphs, _, folder = exported
    whole = {graph.fingerprint for own in graphs.values() for graph in own}
    assert len(list(folder.iterdir())) == len(whole) < sum(map(len, graphs.values()))
    guides = {graph.fingerprint for own in graphs.values() for graph in own if graph.name == "guide"}
    assert len(guides) == 2, "with all channels guided, and with three of them"


def test_the_graphs_hold_nothing_that_an_engine_format_lacks(exported):
    """TensorRT has no stable sort, no TopK beyond 3,840, no scatter that adds; and none is needed."""
    for path in exported[3].glob("*.onnx"):
        model = onnx.load(path)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"TopK", "ScatterElements", "ScatterND", "GatherElements", "NonZero", "Loop", "If"}, kinds
        assert not model.functions and {entry.domain for entry in model.opset_import} == {""}


def test_an_infinite_score_stays_one(exported):
    """A token with one prediction comes first, whatever its age: ONNX's Clip would make a number of infinity."""
    eager, graphs = sides(exported, ("drift", False), 1)
    computed = torch.randn(2, N, w, generator=torch.Generator().manual_seed(0))
    for side in (eager, graphs):
        side.change("advance", {"computed": computed, "now": 0.0, "cached": torch.ones(2, N)})
        side.known = {name: tensor[:1] for name, tensor in side.known.items()}
    assert torch.equal(graphs.ask("score", {"now": 1.0})["score"], torch.full((1, N), torch.inf))
