"""AOTInductor packages of real focus steps: every family, frozen or with weights beside them, against eager torch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from accelaes_export.backbones.weights import hollow_transformer
from accelaes_export.backends import backend
from accelaes_export.backends.aoti import AotiBackend, session, targets
from accelaes_export.backends.base import Attention, CompileRequest, Session
from accelaes_export.backends.weights_file import WEIGHTS_FILE
from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.errors import BuildError, BundleError, InputError
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.program import TracedFocusStep
from tests.families import FAMILIES
from tests.thorough import thorough_but

# One worker compiles and reuses: two would compile everything twice.
pytestmark = [
    pytest.mark.xdist_group("aoti"),
    pytest.mark.skipif(not AotiBackend().availability().can_build, reason="there is no C++ compiler"),
]

OTHERS = [name for name in FAMILIES if name != "sd3"]


def silent(phase: str, done: float | None) -> None:
    """A progress callback that shows nothing."""


def short(family: str) -> Any:
    """The family's tiny model of few blocks: compiling takes half a minute a block."""
    tiny = FAMILIES[family]
    return replace(
        tiny, config={**tiny.config, "num_layers": 1 if family == "sd3" else min(2, tiny.config["num_layers"])}
    )


def step_of(family: str, model: torch.nn.Module | None = None) -> FocusStep:
    tiny = short(family)
    variant = next(iter(tiny.variants))
    return tiny.step(tiny.model(variant) if model is None else model, variant, batch=2, fractions=(0.5,))


def compiled(
    folder: Path, family: str, options: CompileOptions, large: int = 2**10, attention: Attention = "native"
) -> tuple[Any, FocusStep]:
    """An engine made of a model without its matrices of `large` numbers or more, and the step to compare with."""
    whole = step_of(family)
    tiny = short(family)
    config = tiny.full_config(next(iter(tiny.variants)))
    stored = {name: value.detach().clone() for name, value in whole.model.state_dict().items()}

    def make(filled: bool) -> FocusStep:
        model = None if filled else hollow_transformer(tiny.backbone, config, stored.get, "fp32", large)
        return step_of(family, model)

    folder.mkdir(exist_ok=True)
    program = TracedFocusStep(make, stored.get)
    request = CompileRequest(
        None, whole.contract, ("cpu",), folder, program=program, options=options, attention=attention
    )
    return AotiBackend().compile(request, silent), whole


def opened(folder: Path, engine: Any, step: FocusStep) -> Session:
    return AotiBackend().open(folder, step.contract, engine.files, versions=engine.versions, targets=engine.targets)


def largest_error(session: Session, step: FocusStep, n: int, B: int, seed: int = 0) -> float:
    """The largest difference to eager torch in any output, with and without affinity, relative to its range."""
    return max(_error(session, step, n, B, seed, observed=observed) for observed in (False, True))


def _error(session: Session, step: FocusStep, n: int, B: int, seed: int, *, observed: bool) -> float:
    inputs = example_inputs(step.contract, n, B=B, seed=seed, observed=observed)
    with torch.no_grad():
        wanted = step.run(inputs)
    found = {name: torch.full(value.shape, torch.nan, dtype=value.dtype) for name, value in wanted.items()}
    session.run(inputs, found)
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1)).item()
        for name, value in wanted.items()
        if value.numel()
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, FocusStep]:
    """SD3, a package for every bucket, made without the large weights, which lie beside them."""
    folder = tmp_path_factory.mktemp("shared")
    return folder, *compiled(folder, "sd3", CompileOptions(freezing=False, per_bucket=True))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, FocusStep]:
    """SD3 as the CPU's default has it: one package that holds its weights."""
    folder = tmp_path_factory.mktemp("frozen")
    return folder, *compiled(folder, "sd3", CompileOptions())


@pytest.mark.parametrize("which", ["shared", "frozen"])
def test_every_bucket_and_batch_computes_what_eager_torch_does(which: str, request: pytest.FixtureRequest) -> None:
    folder, engine, step = request.getfixturevalue(which)
    session = opened(folder, engine, step)
    for n in step.contract.buckets:
        for B in range(1, step.contract.rows + 1):
            assert largest_error(session, step, n, B) < 1e-5


@pytest.mark.parametrize("family", thorough_but([], OTHERS))
def test_every_family_compiles_without_its_large_weights(family: str, tmp_path: Path) -> None:
    engine, step = compiled(tmp_path, family, CompileOptions(freezing=False))
    session = opened(tmp_path, engine, step)
    for n in step.contract.buckets:
        assert largest_error(session, step, n, step.contract.rows) < 1e-5


@pytest.mark.thorough
def test_attention_can_stay_the_plugins_operator(tmp_path: Path) -> None:
    """On a CPU the operator concatenates; that a package calls it is what counts."""
    engine, step = compiled(tmp_path, "sd3", CompileOptions(freezing=False), attention="plugin")
    session = opened(tmp_path, engine, step)
    for n in step.contract.buckets:
        assert largest_error(session, step, n, 2) < 1e-5
    inputs = example_inputs(step.contract, step.contract.buckets[0], B=2)
    with torch.profiler.profile() as profiler:
        session.run(inputs, {"focus_prediction": torch.empty(2, step.contract.buckets[0], 16)})
    called = [event.count for event in profiler.key_averages() if event.key == "accelaes::sparse_query_attention"]
    assert called == [len(step.contract.cache) // 2]
    with pytest.raises(BundleError, match="calls version 0 of the attention operator and here is version 1"):
        AotiBackend().open(tmp_path, step.contract, engine.files, versions={"SparseQueryAttention": "0"})
    # Whoever opens it needs nothing of the build wing: the operator comes with the session.
    code = (
        "import sys, torch; from accelaes_export.backends.aoti import AotiBackend; "
        "from accelaes_export.contract.tensors import GraphContract; "
        "contract = GraphContract.model_validate_json(sys.stdin.read()); "
        f"AotiBackend().open(__import__('pathlib').Path({str(tmp_path)!r}), contract, {engine.files!r}, "
        f"versions={dict(engine.versions)!r}, targets=('cpu',)); "
        "assert torch._C._dispatch_has_kernel_for_dispatch_key('accelaes::sparse_query_attention', 'CUDA'); "
        "assert not [name for name in sys.modules if name.startswith('accelaes_export.graph')]"
    )
    subprocess.run([sys.executable, "-c", code], input=step.contract.model_dump_json(), text=True, check=True)


def test_any_text_length_is_taken(frozen: tuple[Path, Any, FocusStep]) -> None:
    folder, engine, step = frozen
    session = opened(folder, engine, step)
    for M in (1, 2, 40):
        inputs = example_inputs(step.contract, step.contract.tokens, B=2, M=M)
        with torch.no_grad():
            wanted = step.run(inputs)["focus_prediction"]
        found = torch.empty_like(wanted)
        session.run(inputs, {"focus_prediction": found})
        assert torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max().item())


def test_packages_share_one_file_that_holds_the_models_weights_bit_for_bit(
    shared: tuple[Path, Any, FocusStep],
) -> None:
    folder, engine, step = shared
    assert engine.files == ("focus_step.n24.pt2", "focus_step.n48.pt2", WEIGHTS_FILE)
    written = load_file(folder / WEIGHTS_FILE)
    weights = {f"model.{name}": value for name, value in step.model.state_dict().items()}
    assert weights.keys() - written.keys() <= {"model.pos_embed.pos_embed"}  # a slice of it is a table of the step
    assert all(torch.equal(written[name], value) for name, value in weights.items() if name in written)


def test_frozen_weights_are_in_the_package(frozen: tuple[Path, Any, FocusStep]) -> None:
    assert frozen[1].files == ("focus_step.pt2",)


def test_threads_share_a_session(frozen: tuple[Path, Any, FocusStep]) -> None:
    folder, engine, step = frozen
    session = opened(folder, engine, step)
    calls = [example_inputs(step.contract, step.contract.buckets[seed % 2], seed=seed) for seed in range(8)]
    with torch.no_grad():
        wanted = [step.run(inputs)["focus_prediction"] for inputs in calls]  # a step serves one call at a time

    def run(inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> bool:
        found = torch.empty_like(expected)
        for _ in range(5):
            session.run(inputs, {"focus_prediction": found.zero_()})
        return torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, calls, wanted))


class TestAPackageThatDoesNotFit:
    def test_is_refused_for_another_torch(self, frozen: tuple[Path, Any, FocusStep]) -> None:
        folder, engine, step = frozen
        with pytest.raises(
            BundleError, match=r"compiled with torch 1\.4\.0\+cpu and here is .* install torch 1\.4\.0, or"
        ):
            AotiBackend().open(folder, step.contract, engine.files, versions={"torch": "1.4.0+cpu"}, targets=("cpu",))

    def test_is_refused_before_it_could_end_the_process(
        self, frozen: tuple[Path, Any, FocusStep], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, engine, step = frozen
        _, needs = engine.versions["cpu"].split(" ", 1)
        monkeypatch.setattr(targets, "_own_instructions", lambda: frozenset(needs.split()) - {"fma"})
        with pytest.raises(BundleError, match="uses fma, which this CPU doesn't have; .* --target x86-64-v3"):
            opened(folder, engine, step)

    def test_is_refused_on_another_kind_of_device(self, frozen: tuple[Path, Any, FocusStep]) -> None:
        folder, engine, step = frozen
        with pytest.raises(InputError, match="compiled for the CPU and was asked to run on cuda"):
            AotiBackend().open(folder, step.contract, engine.files, device="cuda", targets=("cpu",))

    def test_is_refused_when_it_is_no_package(self, frozen: tuple[Path, Any, FocusStep], tmp_path: Path) -> None:
        _, engine, step = frozen
        (tmp_path / "focus_step.pt2").write_bytes(b"PK\x03\x04 and nothing more")
        with pytest.raises(BundleError, match="can't open focus_step.pt2: .* Build the bundle again"):
            opened(tmp_path, engine, step)

    def test_is_refused_when_a_bucket_has_none(self, shared: tuple[Path, Any, FocusStep]) -> None:
        folder, engine, step = shared
        files = tuple(name for name in engine.files if name != "focus_step.n24.pt2")
        with pytest.raises(BundleError, match="no package for the bucket of 24 tokens"):
            AotiBackend().open(folder, step.contract, files, targets=("cpu",))

    def test_is_refused_when_a_weight_is_missing(self, shared: tuple[Path, Any, FocusStep], tmp_path: Path) -> None:
        from safetensors.torch import save_file

        folder, engine, step = shared
        for name in engine.files:
            os.link(folder / name, tmp_path / name) if name != WEIGHTS_FILE else None
        weights = load_file(folder / WEIGHTS_FILE)
        del weights["model.proj_out.weight"]
        save_file(weights, tmp_path / WEIGHTS_FILE)
        with pytest.raises(BundleError, match="lacks model.proj_out.weight; build the bundle again"):
            opened(tmp_path, engine, step)


def test_a_compiler_that_fails_is_a_build_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("C++ compile error\nwith a page of output")

    import torch._inductor

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", broken)
    with pytest.raises(BuildError, match=r"could not compile focus_step\.pt2: C\+\+ compile error$"):
        compiled(tmp_path, "sd3", CompileOptions())


def test_the_backend_is_there_by_name_and_the_session_module_needs_no_compiler() -> None:
    assert backend("aoti").reads == "program"
    assert session.PACKAGE == "focus_step.pt2"
