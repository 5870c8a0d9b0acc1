"""The scripts of the profiling page: a peer outside the harness walks the same way, and two profiles are compared."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from accelaes_export.building.verification import model_arguments
from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.peers import PeerRun
from accelaes_export.measure.profiling.report import BucketProfile, Ceilings, ProfileReport, Spread
from accelaes_export.measure.profiling.spans import Spans
from accelaes_export.measure.profiling.timing import HostStopwatch, spread
from benchmarks import compare_profiles
from benchmarks.peers import sd3_alone
from tests.measure.profiling.tiny import tiny


def test_the_script_alone_computes_what_the_peer_in_the_harness_does() -> None:
    manifest, model, _ = tiny("sd3", guidance=3.0)
    problem = DenoiseProblem(manifest, 2, 4, torch.device("cpu"))
    ours = PeerRun("eager", model, problem, Spans(HostStopwatch()), model_arguments(manifest, model))()
    given = problem.conditions(0, problem.noise).conditioning
    inputs = {
        "noise": problem.noise,
        "text": given["encoder_hidden_states"],
        "pooled": given["pooled_projections"],
    }
    options = Namespace(batch=2, steps=4, guidance=3.0, device="cpu")
    torch.testing.assert_close(sd3_alone.denoise(model, model, options, inputs), ours)


def test_the_script_measures_rounds_and_says_their_spread(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "4", "--warmup", "0", "--rounds", "2", "--cells", "8", "8", "--text", "5"]
    assert len(sd3_alone.main(small)) == 2
    assert len(sd3_alone.main([*small, "--way", "taylorseer-lite", "--before", "2", "--after", "3"])) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("eager: ") and second.startswith("taylorseer-lite: ") and first.endswith(")")


def write_report(path: Path, milliseconds: list[float]) -> Path:
    """A profile of one bucket."""
    seconds = spread([1e-3 * t for t in milliseconds])
    one = Spread(median=1.0, p10=1.0, p90=1.0, minimum=1.0, count=1)
    bucket = BucketProfile(
        n=16,
        fraction=1.0,
        first_seconds=1.0,
        seconds=seconds,
        rounds=tuple(milliseconds),
        of_dense=one,
        flops=1,
        flops_of_dense=1.0,
        of_limit=1.0,
        flops_per_second=1.0,
        of_ceiling=1.0,
        buffer_bytes=0,
        scratch_bytes=0,
        used_bytes=0,
    )
    ceilings = Ceilings(dtype="fp32", matmul_flops_per_second=1, matmul_size=1, copy_bytes_per_second=1, copy_bytes=1)
    report = ProfileReport(
        created_by="a test",
        created="",
        bundle={},
        request={},
        machine={},
        ceilings=ceilings,
        open_seconds=0.0,
        buckets=(bucket,),
        policies=(),
    )
    path.write_text(report.model_dump_json())
    return path


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [([1, 2, 3], [2.2, 2.5, 3.5], 0), ([1, 2, 3], [7, 8, 9], 1), ([1, 2, 9], [5, 5.1, 5.2], 0)],
)
def test_two_profiles_agree_where_a_median_lies_in_the_others_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: list[float], second: list[float], code: int
) -> None:
    paths = [str(write_report(tmp_path / f"{k}.json", values)) for k, values in enumerate((first, second))]
    assert compare_profiles.main(paths) == code
    assert f"{2 - code} of 2 figures agree." in capsys.readouterr().out
