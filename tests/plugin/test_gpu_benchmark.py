"""benchmarks/gpu/attention.py, from one end to the other on a tiny shape: it is ready for a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tests.plugin.interpreted  # noqa: F401  (before the kernel)
from accelaes_export.plugins.sparse_query_attention import measured, tiles
from benchmarks.gpu import attention, attention_cases, attention_tuning

PLUGIN = Path(__file__).parents[2] / "plugins/sparse_query_attention"

if torch.cuda.is_available():
    pytest.skip("on a GPU, run the benchmark itself", allow_module_level=True)


def test_the_issues_shapes_have_the_issues_sizes() -> None:
    wanted = list(attention_cases.shapes(attention_cases.MODELS))
    assert len(wanted) == 15
    by_model = {shape.model: shape for shape in wanted if shape.focus == shape.tokens}
    sizes = {name: (s.head_dim, s.heads, s.kv_heads, s.tokens, s.text) for name, s in by_model.items()}
    assert sizes == {"SD3": (64, 24, 24, 4096, 333), "FLUX": (128, 24, 24, 4096, 512), "Lumina": (72, 32, 8, 4096, 0)}
    half = next(shape for shape in wanted if (shape.model, shape.focus) == ("FLUX", 2048))
    assert (half.queries, half.background) == (2560, 2048)
    assert half.flops == 2 * 2 * 24 * 2560 * 4608 * 128  # two products of a multiply and an add


def test_tuning_measuring_and_the_tables_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (tiles.TABLE, measured.TABLE):
        shutil.copy(PLUGIN / name, tmp_path)
    output = tmp_path / "results" / "attention.json"
    tables = ["--write-tables", "--tables", str(tmp_path)]
    attention.main(["--tiny", "--tune", "--output", str(output), *tables])

    figures = json.loads(output.read_text())
    assert "no GPU, interpreted" in figures["gpu"]  # nobody shall take these for figures of a GPU
    assert len(figures["errors"]) == len(figures["times"]) == 5
    assert all(0 < value < 2e-3 for errors in figures["errors"].values() for value in errors.values())
    assert all(row["kernel"] > 0 for row in figures["times"])
    assert "Correct: 5 shapes" in capsys.readouterr().out

    table = json.loads((tmp_path / tiles.TABLE).read_text())
    row = tiles.choice("sm80", 40, table)
    assert str(row.best) == min(figures["tiles"]["40"], key=figures["tiles"]["40"].get)
    assert row.origin.startswith("measured on no GPU, interpreted")
    assert tiles.choice("sm90", 40, table) == tiles.choice("sm90", 40)  # nothing else was touched
    entries = measured.parse(json.loads((tmp_path / measured.TABLE).read_text()))
    assert [(entry.tokens, entry.focus) for entry in entries] == [(48, n) for n in (6, 12, 24, 36, 48)]

    attention_tuning.write_measurements(tmp_path, [vars(entries[0]) | {"kernel_us": 1.0}])
    again = measured.parse(json.loads((tmp_path / measured.TABLE).read_text()))
    assert len(again) == 5
    assert again[-1].kernel_us == 1.0


def test_a_wrong_kernel_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "new" / "attention.json"
    monkeypatch.setattr(attention_cases, "attention", lambda q, *rest, tile=None: torch.full_like(q, torch.nan))
    with pytest.raises(SystemExit, match="is wrong by nan"):
        attention.main(["--tiny", "--output", str(output)])
    (errors,) = json.loads(output.read_text())["errors"].values()
    assert len(errors) == 4, "what was found before the end is kept, with biases and strides"
    with pytest.raises(SystemExit, match="no tile works for head size 40"):
        attention.main(["--tiny", "--tune"])


def test_biases_and_strides_are_checked_against_attention_written_out() -> None:
    (shape,) = (s for s in attention_cases.shapes(attention_cases.TINY) if s.focus == 24)
    q, k, v, k_bg, v_bg, scale, bias = shape.tensors(torch.device("cpu"), biased=True, strided=True)
    assert not q.is_contiguous() and bias.shape == (1, 1, 29, 53) and (bias < 0).any()
    keys, values = (torch.cat(pair, 2).double().repeat_interleave(2, 1) for pair in ((k, k_bg), (v, v_bg)))
    wanted = torch.softmax(q.double() @ keys.transpose(-1, -2) * scale + bias.double(), -1) @ values
    found = attention_cases.reference((q, k, v, k_bg, v_bg, scale, bias))
    assert torch.allclose(found, wanted)
    without = attention_cases.reference((q, k, v, k_bg, v_bg, scale))
    assert not torch.allclose(without, wanted, atol=1e-2), "the bias matters"


def test_a_sweep_ends_with_its_time_and_ranks_what_it_tried() -> None:
    (shape,) = (s for s in attention_cases.shapes(attention_cases.TINY) if s.focus == 24)
    said: list[str] = []
    tiles_ = [tiles.Tile(16, 16, 4, 2), tiles.Tile(16, 32, 4, 2), tiles.Tile(32, 16, 4, 2)]
    ranked = attention_tuning.tune([shape], tiles_, torch.device("cpu"), said.append, lambda: True)
    assert [tile for _, tile in ranked] == tiles_[:1]
    assert "2 tiles more weren't tried" in said[-1]


def test_without_a_gpu_it_measures_nothing() -> None:
    with pytest.raises(SystemExit, match="torch finds none"):
        attention.main([])


def test_the_sweep_goes_over_the_tables_tiles_and_their_neighbours() -> None:
    found = attention_tuning.sweep_tiles("sm90", 64)
    assert set(tiles.choice("sm90", 64).candidates) <= set(found)
    assert any(tile.descriptors for tile in found)
    assert not any(tile.descriptors for tile in attention_tuning.sweep_tiles("sm80", 64))
    assert len(set(found)) == len(found) > 50


def test_the_installed_table_is_written_as_the_benchmark_writes_it() -> None:
    assert attention_tuning.tiles_text(dict(tiles.table())) == (PLUGIN / tiles.TABLE).read_text()
