"""Buckets: counted FLOPs against independent counts, and what follows from times made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.backends.base import KernelTime
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.graph.focus_step import count_flops
from accelaes_export.measure.profiling.buckets import bucket_figures, profile_buckets, step_tensors, with_kernels
from accelaes_export.measure.profiling.kernels import kernel_table
from accelaes_export.measure.profiling.report import Ceilings
from accelaes_export.measure.profiling.timing import HostStopwatch, Timing
from tests.eager_session import EagerSession
from tests.families import FAMILIES, cases
from tests.measure.profiling.tiny import FRACTIONS, tiny

CEILINGS = Ceilings(
    dtype="fp32", matmul_flops_per_second=1000.0, matmul_size=1, copy_bytes_per_second=1.0, copy_bytes=1
)


@pytest.mark.parametrize(("family", "variant"), cases())
def test_flops_at_n_equal_N_are_torchs_of_the_unmodified_diffusers_model(family: str, variant: str) -> None:
    sort = FAMILIES[family]
    shapes = empty_transformer(sort.backbone, sort.full_config(variant))  # counted as a build counts: without weights
    step = sort.step(shapes, variant)
    contract, model = step.contract, sort.model(variant).eval()
    inputs = example_inputs(contract, contract.tokens)
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)}
    # torch counts no FLOPs of its fused attention on the CPU; of the plain one it does.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sort.backbone.reference(model, call, step.latents)
    assert count_flops(step, contract.tokens) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_flops_of_a_sparse_step_are_those_of_a_count_by_hand() -> None:
    """Stable Diffusion 3, token form: what scales with n, with M, with both, and with neither."""
    _, _, step = tiny("sd3")
    config, contract = step.model.config, step.contract
    D = config.num_attention_heads * config.attention_head_dim
    L, B, M, N = config.num_layers, contract.rows, contract.text_tokens, contract.tokens
    patch = config.patch_size**2 * config.in_channels
    for n in contract.buckets:
        embeddings = N * patch * D + M * config.joint_attention_dim * D
        conditioning = 256 * D + D * D + config.pooled_projection_dim * D + D * D
        modulation = L * 6 * D * D + (L - 1) * 6 * D * D + 2 * D * D + 2 * D * D  # image, text, the last text, the end
        keys = N + M  # fresh and cached ones together
        image = L * (4 * n * D * D + 8 * n * D * D)  # q, k, v, output; feed-forward of four times the width
        text = L * 3 * M * D * D + (L - 1) * (M * D * D + 8 * M * D * D)  # the last block's text ends in its keys
        attention = L * 2 * (n + M) * keys * D
        head = n * D * config.patch_size**2 * config.out_channels
        by_hand = 2 * B * (embeddings + conditioning + modulation + image + text + attention + head)
        assert count_flops(step, n) == pytest.approx(by_hand, rel=0.01), n
        affinity = 2 * B * L * n * M * D
        assert count_flops(step, n, observed=True) == pytest.approx(by_hand + affinity, rel=0.01), n


def test_figures_of_a_bucket_follow_from_times_and_flops() -> None:
    timings = {"4": Timing(rounds=[1.0, 2.0, 3.0]), "16": Timing(rounds=[2.0, 4.0, 6.0])}
    figures = bucket_figures(4, timings, {4: 300, 16: 1000}, CEILINGS)
    assert figures["of_dense"].median == figures["of_dense"].p90 == 0.5
    assert (figures["flops"], figures["flops_of_dense"]) == (300, 0.3)
    assert figures["of_limit"] == pytest.approx(0.6)  # half the time for three tenths of the work
    assert figures["flops_per_second"] == pytest.approx(150.0)
    assert figures["of_ceiling"] == pytest.approx(0.15)
    dense = bucket_figures(16, timings, {4: 300, 16: 1000}, CEILINGS)
    assert (dense["of_limit"], dense["of_dense"].median) == (1.0, 1.0)


def test_every_bucket_is_measured_with_what_a_run_reads_and_writes() -> None:
    manifest, _, step = tiny("sd3")
    session = EagerSession(step)
    found = profile_buckets(session, manifest, CEILINGS, HostStopwatch(), rounds=2, warmup=1)
    contract = step.contract
    assert [bucket.n for bucket in found] == list(contract.buckets)
    assert [bucket.fraction for bucket in found] == list(FRACTIONS)
    calls = {n: session.calls.count((n, contract.rows)) for n in contract.buckets}
    assert set(calls.values()) == {1 + 1 + 1 + 2}  # very first, first of the rounds, warm-up, rounds
    for bucket in found:
        assert bucket.seconds.count == 2 and bucket.first_seconds > 0
        assert bucket.flops == manifest.geometry.bucket_flops[bucket.n]
        assert not bucket.kernels, "watched last of all, when everything else is timed"


def test_a_steps_tensors_are_the_contracts() -> None:
    _, _, step = tiny("sd3")
    session, contract = EagerSession(step), step.contract
    dense, sparse = step_tensors(session, contract.tokens), step_tensors(session, contract.buckets[0])
    assert set(sparse.outputs) == {"focus_prediction"}
    assert set(dense.outputs) == {spec.name for spec in contract.outputs} - {"affinity"}
    shapes = contract.input_shapes(contract.sizes(contract.buckets[0], observed=False))
    numbers = sum(torch.Size(shape).numel() * (8 if name == "focus_index" else 4) for name, shape in shapes.items())
    numbers += contract.rows * contract.buckets[0] * step.latents.token_width * 4
    assert sparse.bytes == numbers


def test_the_component_form_fetches_both_predictions() -> None:
    sort = FAMILIES["sd3"]
    variant = next(iter(sort.variants))
    session = EagerSession(sort.step(sort.model(variant), variant, form="component"))
    tensors = step_tensors(session, session.contract.buckets[0])
    assert set(tensors.outputs) == {"focus_prediction", "background_prediction"}


def test_kernels_are_added_to_buckets_that_were_timed() -> None:
    manifest, _, step = tiny("sd3")
    session = EagerSession(step)
    timed = profile_buckets(session, manifest, CEILINGS, HostStopwatch(), rounds=1, warmup=0)
    watched = with_kernels(session, timed)
    assert all(bucket.kernels and bucket.kernels_from == "torch.profiler" for bucket in watched)
    assert [b.model_copy(update={"kernels": (), "kernels_from": ""}) for b in watched] == list(timed)


def test_a_session_that_counts_its_own_kernels_is_asked() -> None:
    class Counting:
        device = torch.device("cpu")

        def kernel_times(self, inputs, outputs, calls):
            assert (inputs, outputs, calls) == ({"a": 1}, {"b": 2}, 4)
            return (KernelTime("Add", 8, 0.4), KernelTime("MatMul", 4, 2.0))

    kernels, source = kernel_table(Counting(), {"a": 1}, {"b": 2}, calls=4)  # type: ignore[arg-type]
    assert [(k.name, k.calls, k.seconds) for k in kernels] == [("MatMul", 1.0, 0.5), ("Add", 2.0, 0.1)]
    assert source == "the engine's own profiler"


def test_torchs_profiler_sees_the_operators_of_other_sessions() -> None:
    _, _, step = tiny("sd3")
    session = EagerSession(step)
    tensors = step_tensors(session, step.contract.tokens)
    kernels, source = kernel_table(session, tensors.inputs, tensors.outputs, calls=2)
    assert source == "torch.profiler"
    assert any("mm" in kernel.name for kernel in kernels)
    assert [k.seconds for k in kernels] == sorted((k.seconds for k in kernels), reverse=True)
