"""The TensorRT session's logic on a stand-in engine: no GPU, no TensorRT."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accelaes_export.backends.cuda_graphs import GraphCache
from accelaes_export.backends.tensorrt.flavour import RTX, STANDARD, Flavour
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.session import TensorRTSession
from accelaes_export.backends.workspace import Workspace
from accelaes_export.errors import AccelAesError, InputError
from tests.backends import stand_in_tensorrt as stand_in
from tests.backends import tiny_focus_step as tiny

TABLE = tiny.contract("fp16", dynamic_text=False)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def engine() -> stand_in.Engine:
    return stand_in.Engine(TABLE)


@pytest.fixture
def cuda() -> stand_in.Cuda:
    return stand_in.Cuda()


def session_on(
    engine: stand_in.Engine, cuda: stand_in.Cuda, *, cuda_graphs: bool = False, flavour: Flavour = RTX
) -> TensorRTSession:
    return TensorRTSession(Library(stand_in.module(engine), flavour), engine, TABLE, cuda, cuda_graphs=cuda_graphs)


def step(n: int, B: int = 2) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of one call, aligned like device memory."""
    inputs, outputs = tiny.draw_inputs(TABLE, n, B), tiny.empty_outputs(TABLE, n, B)
    return tuple({k: stand_in.aligned(v) for k, v in t.items()} for t in (inputs, outputs))  # type: ignore[return-value]


def filled(tensor: torch.Tensor, value: int) -> bool:
    return bool((tensor.contiguous().view(torch.uint8) == value).all())


@pytest.mark.parametrize(("n", "profile"), [(4, 0), (8, 1), (12, 2), (16, 3)])
def test_a_bucket_runs_in_its_own_profile_and_writes_the_callers_tensors(
    engine: stand_in.Engine, cuda: stand_in.Cuda, n: int, profile: int
) -> None:
    inputs, outputs = step(n)
    session_on(engine, cuda).run(inputs, outputs)
    (context,) = engine.contexts
    assert context.profile == profile
    assert context.launches == [cuda.current_stream.cuda_stream]
    assert context.shapes == {name: tuple(t.shape) for name, t in inputs.items()}
    assert all(context.addresses[name] == t.data_ptr() for name, t in (outputs | inputs).items() if t.numel())
    assert all(filled(t, profile + 1) for t in outputs.values())


def test_contexts_are_made_when_first_needed_and_kept(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session = session_on(engine, cuda)
    assert engine.contexts == []
    for n in (4, 16, 4, 16, 4):
        session.run(*step(n))
    assert [context.profile for context in engine.contexts] == [0, 3]


def test_rtx_compiles_kernels_before_graphs_are_captured(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session_on(engine, cuda, cuda_graphs=True).run(*step(4))
    session_on(engine, cuda, cuda_graphs=False).run(*step(4))
    session_on(engine, cuda, flavour=STANDARD).run(*step(4))
    with_graphs, without, standard = engine.options
    assert with_graphs.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert not hasattr(without, "dynamic_shapes_kernel_specialization_strategy")
    assert standard == "on profile change"


def test_only_what_changed_is_set_again(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session = session_on(engine, cuda)
    inputs, outputs = step(8)
    session.run(inputs, outputs)
    (context,) = engine.contexts
    first = context.settings
    session.run(inputs, outputs)
    assert context.settings == first
    session.run(inputs | {"timestep": stand_in.aligned(inputs["timestep"])}, outputs)
    assert context.settings == first + 1
    session.run(*step(8, B=1))
    assert context.shapes["timestep"] == (1,)


def test_an_empty_background_is_bound_to_an_address(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    inputs, outputs = step(16)
    session_on(engine, cuda).run(inputs | {"cache.0.k_bg": torch.empty(2, 2, 0, 32).half()}, outputs)
    assert engine.contexts[0].addresses["cache.0.k_bg"] % 256 == 0
    assert engine.contexts[0].addresses["cache.0.k_bg"] > 0


def test_outputs_that_are_left_out_get_memory_of_their_own(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session = session_on(engine, cuda)
    inputs, outputs = step(8, B=1)
    session.run(inputs, {"affinity": outputs["affinity"]})
    addresses = dict(engine.contexts[0].addresses)
    unread = {name: addresses[name] for name in outputs if name != "affinity"}
    assert len(set(unread.values())) == len(unread)
    assert filled(outputs["affinity"], 2)
    assert torch.isnan(outputs["focus_prediction"]).all()
    inputs, outputs = step(8, B=2)
    session.run(inputs, {"affinity": outputs["affinity"]})  # there is room for the largest batch
    assert {name: engine.contexts[0].addresses[name] for name in unread} == unread


def test_a_workspaces_call_is_captured_then_replayed(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session, place = session_on(engine, cuda, cuda_graphs=True), Workspace(2, cuda.device)
    one, other = step(8), step(8)
    session.run(*one, place)
    (graph,) = cuda.captured
    launches = len(engine.contexts[0].launches)
    session.run(*one, place)
    session.run(*one, place)
    assert graph.replays == [7, 7]
    assert len(engine.contexts[0].launches) == launches
    session.run(*other, place)  # other addresses: a plain call and its capture; the first graph stays
    assert len(engine.contexts[0].launches) == launches + 2
    session.run(*one, place)
    session.run(*other, place)
    assert [graph.replays for graph in cuda.captured] == [[7, 7, 7], [7]]
    assert (place.captures, place.replays) == (2, 4)


def test_tensors_of_no_workspace_are_never_captured(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session, tensors = session_on(engine, cuda, cuda_graphs=True), step(8)
    for _ in range(4):
        session.run(*tensors)
    assert cuda.captured == []


def test_the_batch_is_part_of_a_graphs_key(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session, place = session_on(engine, cuda, cuda_graphs=True), Workspace(2, cuda.device)
    inputs, outputs = step(8, B=2)
    for _ in range(2):
        session.run(inputs, outputs, place)
    session.run({k: v[:1] for k, v in inputs.items()}, {k: v[:1] for k, v in outputs.items()}, place)
    assert len(cuda.captured[0].replays) == 1
    assert engine.contexts[0].shapes["timestep"] == (1,)


def test_graphs_wait_until_tensorrt_is_ready_and_are_given_up_where_cuda_refuses(
    engine: stand_in.Engine, cuda: stand_in.Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    session, place = session_on(engine, cuda, cuda_graphs=True), Workspace(2, cuda.device)
    tensors = step(8)
    session.run(*tensors)
    engine.contexts[0].ready_for_capture = False
    session.run(*tensors, place)
    assert cuda.captured == []
    engine.contexts[0].ready_for_capture, cuda.refuses = True, True
    for _ in range(3):
        session.run(*tensors, place)
    assert cuda.captured == []
    assert caplog.text.count("CUDA graphs are off for this session") == 1
    assert filled(tensors[1]["affinity"], 2)


def test_without_graphs_every_call_is_enqueued(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session, tensors, place = session_on(engine, cuda), step(8), Workspace(2, cuda.device)
    for _ in range(4):
        session.run(*tensors, place)
    assert len(engine.contexts[0].launches) == 4
    assert cuda.captured == []


def test_the_graph_cache_forgets_the_least_recently_used() -> None:
    cache: GraphCache[str] = GraphCache(2)
    cache.put("a", "graph a")
    cache.put("b", "graph b")
    assert cache.get("a") == "graph a"
    cache.put("c", "graph c")
    assert (len(cache), cache.get("a"), cache.get("b"), cache.get("c")) == (2, "graph a", None, "graph c")


def test_threads_take_turns_in_a_bucket_and_not_across_buckets(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session = session_on(engine, cuda)
    engine.takes = 0.02
    steps = [step(n) for n in (4, 8) * 6]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda tensors: session.run(*tensors), steps))
    assert len(engine.contexts) == 2
    assert [context.most_together for context in engine.contexts] == [1, 1]
    assert all(filled(o["affinity"], 1 if o["affinity"].shape[1] == 4 else 2) for _, o in steps)


def test_a_call_on_another_stream_waits_for_the_one_before(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session = session_on(engine, cuda)
    session.run(*step(8))
    before = cuda.current_stream.log[-1]
    cuda.current_stream = stand_in.Stream(8)
    session.run(*step(8))
    assert before[0] == "record"
    assert cuda.current_stream.log[0] == ("wait", before[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i, o: i.update(focus_index=torch.arange(10).expand(2, 10)), "buckets for 4, 8, 12, 16 focus tokens"),
        (lambda i, o: i.update(timestep=torch.ones(2).half()[1:].expand(2)), "'timestep' is not contiguous"),
        (lambda i, o: i.update(timestep=i["timestep"].repeat(2)[2:]), "multiple of 256 bytes"),
        (lambda i, o: i.update(timestep=i["timestep"].to("meta")), "lives on meta; this session runs on cpu"),
        (lambda i, o: i.update(token_weights=torch.ones(2, 7)), "'token_weights' has shape (2, 7)"),
        (lambda i, o: i.pop("hidden_states"), "'hidden_states' is missing"),
    ],
)
def test_a_wrong_tensor_is_refused_before_the_engine_sees_it(
    engine: stand_in.Engine, cuda: stand_in.Cuda, change: object, sentence: str
) -> None:
    inputs, outputs = step(8)
    change(inputs, outputs)  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        session_on(engine, cuda).run(inputs, outputs)
    assert sentence in str(caught.value)
    assert engine.contexts == []


def test_what_tensorrt_refuses_is_said(engine: stand_in.Engine, cuda: stand_in.Cuda) -> None:
    session, tensors = session_on(engine, cuda), step(8)
    session.run(*tensors)
    engine.contexts[0].refuse = {"launch"}
    with pytest.raises(AccelAesError, match="tensorrt-rtx refused a focus step: it gave no reason"):
        session.run(*tensors)
    engine.contexts[0].refuse = {"timestep"}
    with pytest.raises(AccelAesError, match="refused the shape \\(1,\\) of 'timestep'"):
        session.run(*step(8, B=1))
    engine.contexts[0].refuse = set()
    session.run(*tensors)  # shapes are set anew after a refusal
    assert engine.contexts[0].shapes["timestep"] == (2,)
    engine.refuse = {"profile"}
    with pytest.raises(AccelAesError, match="no room for the bucket of 16 tokens"):
        session.run(*step(16))
