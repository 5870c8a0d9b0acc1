"""Traces are what chrome://tracing and Perfetto read: complete events in microseconds, nested in their rows."""

from __future__ import annotations

import json

import pytest
import torch

from accelaes_export.measure.profiling.spans import ENGINE, RUN, STEP, Span, Spans
from accelaes_export.measure.profiling.timing import HostStopwatch
from accelaes_export.measure.profiling.trace import chrome_trace


def recorded() -> tuple[Span, ...]:
    """A run of two steps of 3 s, the engine busy for 2 of each, 1 s between and around them."""
    ticks = iter([10, 11, 11.5, 13.5, 14, 15, 15.5, 17.5, 18, 19])
    spans = Spans(HostStopwatch(lambda: next(ticks)))
    with spans.span(RUN, "dense", images=1):
        for i in range(2):
            with spans.span(STEP, str(i), index=i), spans.span(ENGINE, "n = 4", n=4):
                pass
    return spans.take()


def test_spans_begin_at_their_run_and_are_in_order() -> None:
    spans = recorded()
    assert [(s.what, s.start, s.seconds) for s in spans] == [
        (RUN, 0, 9),
        (STEP, 1, 3),
        (ENGINE, 1.5, 2),
        (STEP, 5, 3),
        (ENGINE, 5.5, 2),
    ]


def test_taken_spans_are_gone() -> None:
    spans = Spans(HostStopwatch())
    with spans.span(RUN, "a"):
        pass
    assert len(spans.take()) == 1 and spans.take() == ()


def test_on_a_gpu_spans_are_nvtx_ranges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", log.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: log.append("end"))
    spans = Spans(HostStopwatch(), ranges=True)
    with spans.span(RUN, "dense"), spans.span(STEP, "0"):
        pass
    assert log == ["run dense", "step 0", "end", "end"]


def test_a_span_that_fails_is_closed() -> None:
    spans = Spans(HostStopwatch())
    try:
        with spans.span(RUN, "a"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert len(spans.take()) == 1


def test_a_trace_is_a_row_a_policy_with_its_steps_inside() -> None:
    text = chrome_trace({"dense": recorded(), "accelaes": recorded()[:3]}, {"bundle": "b"})
    trace = json.loads(text)
    assert trace["otherData"] == {"bundle": "b"} and trace["displayTimeUnit"] == "ms"
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {1: "dense", 2: "accelaes"}
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(complete) == 8 and all({"name", "cat", "ts", "dur", "pid", "tid"} <= e.keys() for e in complete)
    assert all(e["ph"] in "XM" for e in trace["traceEvents"])
    (run,) = (e for e in complete if e["tid"] == 1 and e["cat"] == RUN)
    assert (run["ts"], run["dur"]) == (0, 9e6)
    for step in (e for e in complete if e["tid"] == 1 and e["cat"] == STEP):
        assert run["ts"] <= step["ts"] and step["ts"] + step["dur"] <= run["ts"] + run["dur"]
