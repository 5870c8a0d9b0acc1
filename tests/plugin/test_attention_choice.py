"""`--attention`: what is asked for, what can be, and what measurements say."""

from __future__ import annotations

import pytest

from accelaes_export.backends import backend
from accelaes_export.building.attention import choose_attention
from accelaes_export.errors import InputError
from accelaes_export.plugins.sparse_query_attention.measured import Measurement, faster, measurements, parse
from tests.backends import tiny_focus_step as tiny

CONTRACT = tiny.contract("fp16", dynamic_text=False)  # N = 16, buckets 4, 8, 12, 16


def measured(focus: int, kernel_us: float, library_us: float, tokens: int = 16, **changes: object) -> Measurement:
    fields = {
        "architecture": "sm86",
        "gpu": "a GPU",
        "dtype": "fp16",
        "head_dim": 32,
        "tokens": tokens,
        "focus": focus,
        "text": 6,
        "tile": "128x64-w4-s3",
        "kernel_us": kernel_us,
        "library_us": library_us,
        "library": "flash",
        "versions": "torch 2",
    }
    return Measurement(**(fields | changes))


def choose(asked: str, *table: Measurement, targets: tuple[str, ...] = ("sm86",), **changes: object) -> str:
    given = {"backend": "tensorrt-rtx", "targets": targets, "contract": CONTRACT, "head_dims": [32]} | changes
    return choose_attention(asked, **(given | {"backend": backend(given["backend"])}), measured=table)


FASTER = (measured(4, 10, 20), measured(16, 30, 40))


def test_native_is_native_and_plugin_is_the_plugin_whatever_was_measured():
    assert choose("native", *FASTER) == "native"
    assert choose("plugin") == "plugin"
    assert choose("plugin", backend="tensorrt", targets=("native",)) == "plugin"


def test_auto_is_native_where_nothing_was_measured():
    assert choose("auto") == "native"
    assert choose("auto", measured(4, 1, 2, architecture="sm120")) == "native"
    assert choose("auto", measured(4, 1, 2, dtype="bf16"), measured(4, 1, 2, head_dim=64)) == "native"
    assert choose("auto", measured(4, 1, 2, tokens=64)) == "native"  # too large to speak for this one
    assert choose("auto", *FASTER, backend="tensorrt", targets=("native",)) == "native"


def test_auto_is_the_plugin_where_it_is_faster_over_the_buckets_on_every_target():
    assert choose("auto", *FASTER) == "plugin"
    assert choose("auto", *FASTER, targets=("sm86", "sm120")) == "native"
    assert choose("auto", *FASTER, measured(8, 1, 2, architecture="sm120"), targets=("sm86", "sm120")) == "plugin"
    assert choose("auto", measured(4, 10, 20), measured(16, 90, 40)) == "native"
    # Every bucket goes by the measurement nearest to it: 4 and 8 by the first, 12 and 16 by the second.
    assert faster("sm86", "fp16", 32, 16, [4, 8, 12, 16], [measured(4, 10, 20), measured(16, 49, 40)])
    assert not faster("sm86", "fp16", 32, 16, [12, 16], [measured(4, 10, 20), measured(16, 49, 40)])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backend": "onnxruntime"}, "is for aoti, tensorrt-rtx, tensorrt, and onnxruntime has its own attention"),
        ({"contract": tiny.contract("fp32")}, "takes fp16 and bf16, not fp32"),
        ({"targets": ("sm75", "sm86")}, "has kernels for sm80, sm86, sm89, sm90, sm100, sm120, not for sm75"),
        ({"head_dims": [64, 20]}, "takes head sizes from 32 to 256 in steps of 8, not 20"),
    ],
)
def test_a_plugin_that_can_not_be_is_refused_and_auto_goes_without(changes, problem):
    with pytest.raises(InputError, match=f"The attention plugin {problem}; build with --attention native"):
        choose("plugin", *FASTER, **changes)
    assert choose("auto", *FASTER, **changes) == "native"


def test_the_installed_measurements_can_be_read_and_others_are_refused():
    assert isinstance(measurements(), tuple)
    entry = vars(FASTER[0])
    assert parse({"entries": [entry]}) == FASTER[:1]
    with pytest.raises(ValueError, match="A measurement has the fields"):
        parse({"entries": [{key: value for key, value in entry.items() if key != "tile"}]})


def test_aoti_takes_it_on_the_gpu_it_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has kernels for sm80, .*, not for cpu"):
        choose("plugin", backend="aoti", targets=("cpu",))
    monkeypatch.setattr("accelaes_export.backends.aoti.resolve", lambda targets: "sm86")
    assert choose("plugin", backend="aoti", targets=("native",)) == "plugin"
    assert choose("auto", backend="aoti", targets=("native",)) == "native"  # nothing was measured
    assert choose("auto", *FASTER, backend="aoti", targets=("cuda",)) == "plugin"
