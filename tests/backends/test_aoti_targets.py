"""What AOTInductor compiles for: targets, instruction sets, and CUDA graphs on a stand-in for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from accelaes_export.backends.aoti import AotiBackend, targets
from accelaes_export.backends.aoti.session import AotiSession
from accelaes_export.backends.workspace import Workspace
from accelaes_export.errors import AccelAesError, BundleError, InputError, MissingComponentError
from accelaes_export.options import parse_compiling
from tests.backends import stand_in_tensorrt as stand_in
from tests.backends import tiny_focus_step as tiny

TABLE = tiny.contract()


class TestTargets:
    def test_a_machine_without_a_gpu_compiles_for_its_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert targets.resolve(("native",)) == targets.resolve(("cpu",)) == "cpu"
        for asked in ("cuda", "sm90"):
            with pytest.raises(MissingComponentError, match=f"compiles for {asked} on a machine with that GPU"):
                targets.resolve((asked,))

    def test_a_machine_with_a_gpu_compiles_for_that_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        assert {targets.resolve((asked,)) for asked in ("native", "cuda", "sm90")} == {"sm90"}
        assert targets.resolve(("cpu",)) == "cpu"
        with pytest.raises(InputError, match="this machine's is sm90, not sm86"):
            targets.resolve(("sm86",))

    @pytest.mark.parametrize("asked", [(), ("cpu", "cuda"), ("sm9",), ("rtx4090",)])
    def test_anything_else_is_refused(self, asked: tuple[str, ...]) -> None:
        with pytest.raises(InputError, match="aoti compiles"):
            targets.resolve(asked)

    @pytest.mark.parametrize(("target", "own"), [("sm80", "sm86"), ("sm86", "sm89"), ("sm90", "sm90")])
    def test_machine_code_runs_on_later_gpus_of_its_generation(self, target: str, own: str) -> None:
        targets.check_gpu(target, own)

    @pytest.mark.parametrize(("target", "own"), [("sm89", "sm86"), ("sm90", "sm100"), ("sm80", "sm90")])
    def test_and_on_no_other(self, target: str, own: str) -> None:
        with pytest.raises(BundleError, match=f"compiled for {target} and this GPU is {own}"):
            targets.check_gpu(target, own)

    def test_bf16_begins_with_sm80(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
        with pytest.raises(InputError, match="sm75 has no bf16"):
            AotiBackend().check("bf16", ("cuda",))


class TestInstructions:
    def test_are_read_from_a_compilers_flags(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
        flags = "-mavx512f -mavx512dq -mfma -mamx-tile -march=x86-64-v4"
        assert targets.cpu_instructions(flags) == "x86_64 amxtile avx512dq avx512f fma"

    def test_are_compared_however_they_are_spelt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(targets, "_own_instructions", lambda: frozenset({"avx512bf16", "fma", "amxtile"}))
        targets.check_cpu("x86_64 avx512bf16 amxtile")
        with pytest.raises(BundleError, match="uses avx512vnni, which this CPU doesn't have"):
            targets.check_cpu("x86_64 avx512vnni fma")
        with pytest.raises(BundleError, match="compiled for aarch64 and this machine is x86_64"):
            targets.check_cpu("aarch64")

    def test_of_this_machine_hold_what_torch_says(self) -> None:
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            assert {"avx2", "avx512f", "fma"} <= targets._own_instructions()


def test_a_machine_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    here = AotiBackend().availability()
    assert (here.can_build, here.can_run) == (False, True)
    with pytest.raises(MissingComponentError, match=r"no C\+\+ compiler no-such-compiler; install g\+\+"):
        AotiBackend().check("fp32", ("cpu",))


def test_flags_of_kernel_generation_are_words_with_commas() -> None:
    assert parse_compiling("autotune, per-bucket") == {"autotune": True, "per_bucket": True}
    assert parse_compiling("no-freezing") == {"freezing": False}
    with pytest.raises(InputError, match="say freezing twice"):
        parse_compiling("freezing,no-freezing")
    with pytest.raises(InputError, match="'fast' is no flag of kernel generation; there are autotune, freezing"):
        parse_compiling("fast")


class Runner:
    """A package that returns tensors full of the number of its call."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.fails:
            raise RuntimeError("device-side assert\nat some line")
        self.calls += 1
        B, n = inputs[4].shape
        shapes = TABLE.output_shapes(TABLE.sizes(n, B))
        return [torch.full(shapes[spec.name], float(self.calls)) for spec in TABLE.outputs]


def step(n: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    inputs = {spec.name: torch.zeros(spec.sized(TABLE.sizes(n, 2))) for spec in TABLE.inputs}
    inputs["focus_index"] = inputs["focus_index"].long()
    return inputs, {"focus_prediction": torch.empty(TABLE.output_shapes(TABLE.sizes(n, 2))["focus_prediction"])}


@pytest.fixture
def gpu() -> Callable[..., tuple[AotiSession, Runner, stand_in.Cuda]]:
    def make(*, cuda_graphs: bool = True) -> tuple[AotiSession, Runner, stand_in.Cuda]:
        runner, cuda = Runner(), stand_in.Cuda()
        packages = dict.fromkeys(TABLE.buckets, runner)
        return AotiSession(packages, TABLE, cuda.device, cuda, cuda_graphs=cuda_graphs), runner, cuda

    return make


class TestGraphs:
    def test_a_workspaces_call_is_captured_and_then_replayed(self, gpu: Callable[..., tuple]) -> None:
        session, runner, cuda = gpu()
        inputs, outputs = step(4)
        place = Workspace(2, cuda.device)
        session.run(inputs, outputs, place)  # by itself, then captured
        assert (runner.calls, len(cuda.captured)) == (2, 1)
        session.run(inputs, outputs, place)
        assert (runner.calls, cuda.captured[0].replays) == (2, [7])
        assert (place.captures, place.replays) == (1, 1)
        assert outputs["focus_prediction"].unique().tolist() == [2.0]

    def test_other_tensors_are_another_call_and_those_of_no_workspace_none(self, gpu: Callable[..., tuple]) -> None:
        session, runner, cuda = gpu()
        kept, place = [step(4) for _ in range(3)], Workspace(2, torch.device("cpu"))
        for inputs, outputs in kept:
            session.run(inputs, outputs)
        assert (runner.calls, cuda.captured) == (3, [])
        for inputs, outputs in kept:
            session.run(inputs, outputs, place)
        assert (runner.calls, len(cuda.captured)) == (9, 3)

    def test_they_are_given_up_where_cuda_refuses(
        self, gpu: Callable[..., tuple], caplog: pytest.LogCaptureFixture
    ) -> None:
        session, runner, cuda = gpu()
        cuda.refuses = True
        inputs, outputs = step(4)
        place = Workspace(2, cuda.device)
        for _ in range(4):
            session.run(inputs, outputs, place)
        assert runner.calls == 4
        assert caplog.text.count("CUDA graphs are off for this session") == 1

    def test_without_them_every_call_is_made(self, gpu: Callable[..., tuple]) -> None:
        session, runner, cuda = gpu(cuda_graphs=False)
        inputs, outputs = step(4)
        place = Workspace(2, cuda.device)
        for _ in range(3):
            session.run(inputs, outputs, place)
        assert (runner.calls, cuda.captured) == (3, [])

    def test_a_failed_step_is_one_sentence(self, gpu: Callable[..., tuple]) -> None:
        session, runner, _ = gpu()
        runner.fails = True
        with pytest.raises(AccelAesError, match="AOTInductor failed in a focus step: device-side assert.$"):
            session.run(*step(4))
