"""Published figures: the files, whose model they are of, and that they stay text, as printed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export import recipes
from accelaes_export.errors import InputError
from accelaes_export.measure.quality.published import LABEL, papers, papers_about, parse
from accelaes_export.measure.quality.report import PolicyQuality, QualityReport

TABLE = {
    "number": "1",
    "model": "SD3-Medium",
    "recipes": ["sd3"],
    "rows_are": "method",
    "columns": [{"title": "Time", "unit": "s", "better": "lower"}, {"title": "CLIP"}],
    "rows": [["dense", "3.50", "0.2660"]],
}


def text(**changes: Any) -> str:
    table = {name: value for name, value in (TABLE | changes).items() if value is not None}
    return yaml.safe_dump(
        {"name": "Some", "title": "Some method", "year": 2026, "source": "a journal", "tables": [table]}
    )


def test_the_three_papers_are_there_and_every_table_once() -> None:
    assert [paper.name for paper in papers()] == ["AccelAes", "DiffSparse", "RAS"]
    for paper in papers():
        numbers = [table.number for table in paper.tables]
        assert len(set(numbers)) == len(numbers)
        for table in paper.tables:
            titles = [column.title for column in table.columns]
            assert len({table.rows_are, *titles}) == 1 + len(titles)
            assert len(set(table.rows)) == len(table.rows)


def test_every_table_is_of_a_model_that_can_be_built_and_none_of_the_shipped_one() -> None:
    named = {name for paper in papers() for table in paper.tables for name in table.recipes}
    assert named == {
        "dit-xl-2",
        "flux-dev",
        "flux-schnell",
        "lumina-next",
        "pixart-alpha",
        "sd3",
        "wan2.1-1.3b",
    }
    assert named < set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_shown_its_own_models_tables_and_no_others(name: str) -> None:
    shown = [(paper.name, table.number) for paper in papers_about(name) for table in paper.tables]
    of_it = [(paper.name, table.number) for paper in papers() for table in paper.tables if name in table.recipes]
    assert shown == of_it
    assert all(paper.tables for paper in papers_about(name))


def test_an_unknown_recipe_and_other_versions_of_a_published_model_have_none() -> None:
    for name in ("shapes", "sd35-medium", "pixart-sigma", "qwen-image", "a model of one's own"):
        assert papers_about(name) == ()


def test_a_heading_says_that_it_is_published_by_whom_and_of_what() -> None:
    (paper, *_) = papers_about("sd3")
    (table,) = paper.tables
    assert paper.heading(table) == (
        "Published, not measured here: AccelAes, table 5 (SD3-Medium, 28 steps, 1024x1024, RTX 5090)"
    )
    assert paper.heading(table).startswith(LABEL)
    bare = parse(text(ablation="skip ratio"), "mine.yaml")
    assert bare.heading(bare.tables[0]) == f"{LABEL}: Some, table 1, skip ratio (SD3-Medium)"
    assert bare.tables[0].remark == ""


@given(st.from_regex(r"~?-?[0-9]{1,4}(\.[0-9]{1,4})?", fullmatch=True))
def test_figures_keep_every_printed_digit(figure: str) -> None:
    unquoted = text().replace("'3.50'", figure).replace("'0.2660'", "0.10")
    assert parse(unquoted, "mine.yaml").tables[0].rows == (("dense", figure, "0.10"),)


def test_of_accelaes_and_dense_on_sd3_the_ratio_of_times_is_the_printed_speedup() -> None:
    rows = {row[0]: row[1:] for row in papers_about("sd3")[0].tables[0].rows}
    for name in ("TeaCache", "TaylorSeer", "Δ-DiT", "FORA", "AccelAes"):
        time, speedup, *_ = map(float, rows[name])
        assert float(rows["SD3-Medium"][0]) / time == pytest.approx(speedup, abs=0.006)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": [["dense", "3.50"]]}, "row 'dense' has 2 cells; give a name and 2 figures"),
        ({"rows": [["dense", "3.50", "1", "2"]]}, "row 'dense' has 4 cells"),
        ({"rows": [["dense", "3.50s", "0.1"]]}, "'3.50s' in row 'dense' is no figure"),
        ({"rows": [["dense", "", "0.1"]]}, "'' in row 'dense' is no figure"),
        ({"rows": []}, "tables.0.rows: "),
        ({"recipes": []}, "tables.0.recipes: "),
        ({"number": None}, "tables.0.number: Field required"),
        ({"colour": "red"}, "tables.0.colour: Extra inputs"),
        ({"columns": [{"title": "Time", "better": "faster"}]}, "tables.0.columns.0.better: "),
    ],
)
def test_a_wrong_table_is_one_sentence_that_names_the_file(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"^mine\.yaml: [^\n]*$") as caught:
        parse(text(**changes), "mine.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "3", "", "- a"])
def test_what_is_no_mapping_is_no_paper(content: str) -> None:
    with pytest.raises(InputError, match=r"^mine\.yaml[^\n]*$"):
        parse(content, "mine.yaml")


def test_a_summary_has_no_place_for_published_figures() -> None:
    assert not [name for name in (*QualityReport.model_fields, *PolicyQuality.model_fields) if "publish" in name]
