"""Traces that chrome://tracing and ui.perfetto.dev open: a row a policy or peer, its steps and engine calls nested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accelaes_export.measure.profiling.spans import Span


def chrome_trace(rows: Mapping[str, Sequence[Span]], about: Mapping[str, Any]) -> str:
    """The JSON of a trace.

    Args:
        rows: spans of one run each, by what ran. All runs begin at 0, one below the other, so that they compare.
        about: what the trace should say of itself.
    """
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "accelaes-export profile"}}
    ]
    for tid, (name, spans) in enumerate(rows.items(), start=1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": tid, "args": {"sort_index": tid}})
        events += [
            {
                "name": span.name,
                "cat": span.what,
                "ph": "X",
                "ts": 1e6 * span.start,
                "dur": 1e6 * span.seconds,
                "pid": 1,
                "tid": tid,
                "args": dict(span.details),
            }
            for span in spans
        ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about)}) + "\n"
