"""A whole profile: everything in one report that can be read back, and nothing measured that can't be."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from accelaes_export import policies
from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError
from accelaes_export.measure.profiling.parts import profile_parts
from accelaes_export.measure.profiling.profile import Profile, profile
from accelaes_export.measure.profiling.report import SCHEMA_VERSION, ProfileReport
from accelaes_export.measure.profiling.request import PEERS, ProfileRequest
from accelaes_export.measure.profiling.timing import HostStopwatch
from accelaes_export.policies import AccelAes, Dense, StepCache
from tests.measure.profiling.tiny import tiny_bundle

T = 8
ALL = (Dense(), StepCache(), AccelAes())


def by_name(*given: policies.Policy) -> dict[str, policies.Policy]:
    return {policy.name: policy for policy in given}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Everything of the tiny bundle, at two batches, two rounds."""
    request = ProfileRequest(
        by_name(*ALL, policies.named("fewer-steps", budget=4)),
        batches=(3, 1),
        warmup=0,
        iterations=2,
        against=("eager", "diffusers-caches"),
    )
    with pytest.MonkeyPatch.context() as patch:
        return profile(tiny_bundle(tmp_path_factory.mktemp("bundles") / "bundle", patch), request)


def test_one_run_measures_buckets_policies_and_peers(measured: Profile, bundle: Bundle) -> None:
    report = measured.report
    text = report.model_dump_json()
    assert ProfileReport.model_validate_json(text).model_dump_json() == text
    assert report.schema_version == SCHEMA_VERSION
    assert [b.n for b in report.buckets] == list(bundle.manifest.geometry.contract.buckets)
    ran = ("dense", "stepcache", "accelaes", "fewer-steps")
    assert [(p.name, p.images) for p in report.policies] == [(name, b) for b in (3, 1) for name in ran]
    fewer = report.policies[3]
    assert (fewer.plan, fewer.flop_limit) == ("DDDD", bundle.manifest.defaults.steps / 4)
    names = ["diffusers eager", "FirstBlockCache", "MagCache", "TaylorSeer", "TaylorSeer lite"]
    assert [(p.name, p.images) for p in report.peers] == [(n, b) for b in (3, 1) for n in names]
    for found in (*report.policies, *report.peers):
        assert found.seconds.count == 2 and found.seconds.minimum > 0
        assert found.images_per_second == pytest.approx(found.images / found.seconds.median)
        dense = next(p for p in report.policies if p.name == "dense" and p.images == found.images)
        by_hand = [d / own for d, own in zip(dense.rounds, found.rounds, strict=True)]
        assert found.dense_over_this is not None
        assert found.dense_over_this.median == pytest.approx(statistics.median(by_hand))
    assert {p.wanted_computes for p in report.peers} == {None, StepCache().plan(12).symbols.count("D")}
    assert report.ceilings.matmul_flops_per_second > 1e8 and report.ceilings.copy_bytes_per_second > 1e8
    assert report.bundle["build_key"] == bundle.manifest.build_key
    assert report.request["against"] == ["eager", "diffusers-caches"]
    assert report.machine["pinned"] in (True, False) and report.machine["versions"]["torch"]
    assert not report.parts and "random weights" in report.parts_note


def test_spans_of_the_first_batch_are_handed_on_for_a_trace(measured: Profile) -> None:
    assert [*measured.spans][:5] == ["dense", "stepcache", "accelaes", "fewer-steps", "diffusers eager"]
    run, *others = measured.spans["accelaes"]
    assert (run.what, run.details["images"]) == ("run", 3)
    assert sum(span.what == "step" for span in others) == 12
    for span in others:
        assert run.start <= span.start and span.start + span.seconds <= run.start + run.seconds + 1e-9


def test_time_adds_up(measured: Profile) -> None:
    """Engine, runtime and loop are the whole denoise."""
    for policy in measured.report.policies:
        assert sum(kind.count for kind in policy.kinds) == len(policy.plan)
        assert policy.runtime is not None
        outside = len(policy.plan) * (
            policy.runtime.seconds_per_step.median + policy.runtime.loop_seconds_per_step.median
        )
        assert 0 < outside < policy.seconds.p90


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": {}}, "No policy was given"),
        ({"batches": (1, 1)}, "Batch 1 is given twice"),
        ({"batches": (0,)}, "allowed are 1 to 1024"),
        ({"batches": (2000,)}, "Batch 2000 was given"),
        ({"steps": 1}, "1 denoising steps"),
        ({"warmup": -1}, "-1 warm-up"),
        ({"iterations": 0}, "0 measured rounds"),
        ({"against": ("teacache",)}, f"There is no peer 'teacache'; allowed are {', '.join(PEERS)}"),
        ({"against": ("eager", "eager")}, "Peer eager is given twice"),
    ],
)
def test_a_request_that_cannot_be_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        ProfileRequest(**{"policies": by_name(Dense()), "steps": T, **changes})


def test_a_policy_whose_budget_is_a_number_of_steps_keeps_to_it_whatever_the_others_are_told(bundle: Bundle) -> None:
    own = policies.named("fewer-steps", budget=4)
    assert len(ProfileRequest(by_name(Dense(), own)).plans(bundle.manifest)["fewer-steps"]) == 4
    assert len(ProfileRequest(by_name(Dense(), own)).plans(bundle.manifest)["dense"]) == bundle.manifest.defaults.steps
    assert len(ProfileRequest(by_name(Dense(), own), 3).plans(bundle.manifest)["fewer-steps"]) == 4
    assert len(ProfileRequest(by_name(Dense(), own), 3).plans(bundle.manifest)["dense"]) == 3


def test_a_model_without_text_has_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", monkeypatch, "dit")
    with pytest.raises(InputError, match="Policy accelaes needs a mask from the text"):
        profile(bundle, ProfileRequest(by_name(*ALL), T))
    plans = ProfileRequest(by_name(Dense(), StepCache()), T).plans(bundle.manifest)
    assert list(plans) == ["dense", "stepcache"]


def test_a_checkpoint_that_is_no_pipeline_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", monkeypatch)
    monkeypatch.setattr(Bundle, "session", lambda self: pytest.fail("it was opened"))
    with pytest.raises(InputError, match="has no model_index.json"):
        profile(bundle, ProfileRequest(by_name(Dense()), T, checkpoint=tmp_path))


def test_the_last_threads_are_put_back_when_a_profile_is_interrupted(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.sched_getaffinity(0)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("accelaes_export.measure.profiling.ceilings.measure_ceilings", interrupt)
    with pytest.raises(KeyboardInterrupt):
        profile(bundle, ProfileRequest(by_name(Dense()), T, warmup=0, iterations=1))
    assert os.sched_getaffinity(0) == before


def test_text_encoders_and_vae_are_timed_in_the_pipelines_own_calls(shapes_bundle: Bundle) -> None:
    parts, why_none = profile_parts(shapes_bundle, HostStopwatch(), None, rounds=2)
    assert not why_none
    calls = {part.name: part.calls for part in parts}
    assert calls == {"text_encoder": 2, "text_encoder_2": 2, "vae": 1}  # prompt and negative prompt, one picture
    assert all(part.seconds.count == 2 and part.seconds.minimum > 0 for part in parts)


def test_what_there_is_can_be_kept_after_every_part_and_later_profiles_need_not_measure_a_device_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, kept = tiny_bundle(tmp_path / "bundle", monkeypatch), []
    request = ProfileRequest(by_name(Dense(), StepCache()), steps=8, warmup=0, iterations=2)
    whole = profile(bundle, request, partial=kept.append).report
    expected = ["buckets", "denoises", "more rounds of batch 1", "more rounds of batch 1", "text encoders and VAE"]
    assert [report.unfinished for report in kept] == [*expected, "kernels"]
    assert [len(report.buckets) for report in kept[:2]] == [0, len(whole.buckets)]
    assert [[p.seconds.count for p in report.policies] for report in kept] == [[], [], [1, 1], *[[2, 2]] * 3]
    assert [{p.runtime.host_waits for p in report.policies} for report in kept[2:]] == [{None}, {None}, {0}, {0}]
    assert whole.unfinished == "" and all(bucket.kernels for bucket in whole.buckets)
    assert ProfileReport.model_validate_json(kept[0].model_dump_json()) == kept[0]
    monkeypatch.setattr("accelaes_export.measure.profiling.ceilings.measure_ceilings", None)
    monkeypatch.setattr("accelaes_export.measure.profiling.buckets.profile_buckets", None)
    again = profile(bundle, request, known=whole).report
    assert (again.ceilings, again.buckets) == (whole.ceilings, whole.buckets)
    assert [p.name for p in again.policies] == ["dense", "stepcache"]
