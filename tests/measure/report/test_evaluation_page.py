"""An evaluation's page: quality against cost, the figures, and as many prompts' pictures as fit."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image

from accelaes_export.errors import InputError
from accelaes_export.measure.quality.published import LABEL, Column, Paper, PublishedTable, papers_about
from accelaes_export.measure.quality.report import ImageRow, Interval
from accelaes_export.measure.report.evaluation_page import evaluation_page
from accelaes_export.measure.report.gallery import gallery
from accelaes_export.measure.report.images import heat, heat_map
from tests.fake_bundle import fake_geometry, fake_manifest
from tests.measure.report.samples import HOSTILE, POLICIES, Element, Page, quality_report, rows
from tests.measure.report.test_profile_page import assert_self_contained

LATENTS = fake_geometry().latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[ImageRow, ...]:
    return rows(folder)


@pytest.fixture(scope="module")
def html(folder: Path, made: tuple[ImageRow, ...]) -> str:
    return evaluation_page(quality_report(), made, folder, fake_manifest())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def decoded(uri: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode((uri or "").partition("base64,")[2]))).convert("RGB")


def pictures(page: Page, element: Element) -> list[Element]:
    return [e for e in page.all("img") if element in e.around and (e.attributes["src"] or "").startswith("data:image")]


def test_the_page_is_well_formed_and_fetches_nothing(page: Page) -> None:
    assert [e.text for e in page.all("h2")] == [
        "Quality against cost",
        "In figures",
        "Plans",
        "Pictures",
        "Machine",
        "Bundle",
    ]
    assert_self_contained(page)


def test_hostile_prompts_and_labels_are_shown_and_are_not_markup(page: Page) -> None:
    assert len(page.all("script")) == 2
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert [e.text for e in page.all("h3") if HOSTILE in e.text] == [f"{HOSTILE} 0", f"{HOSTILE} 1"]
    assert HOSTILE in page.rows("Policies in figures")
    assert page.all("img") and all(e.attributes["src"] != "x" for e in page.all("img"))


def test_points_lie_where_cost_and_quality_are(page: Page) -> None:
    svg = next(e for e in page.all("svg", "scatter") if (e.attributes["aria-label"] or "").startswith("PSNR"))
    drawn = {}
    for circle in page.all("circle"):
        if svg in circle.around:
            number = next(e.text for e in page.all("text") if e.around[-1] is circle.around[-1])
            place = [float((circle.attributes[name] or "").rstrip("%")) for name in ("cx", "cy")]
            drawn[int(number)] = (*place, circle.around[-1].has("best"))
    expected = {k: (cost, psnr) for k, (_, cost, psnr, _) in enumerate(POLICIES, 1) if psnr is not None}
    assert set(drawn) == set(expected)
    # The places are one straight line's of the values, on either axis: cost rightwards, quality upwards.
    cheap, good, beaten = 2, 4, 3
    per_cost = (drawn[good][0] - drawn[cheap][0]) / (expected[good][0] - expected[cheap][0])
    per_decibel = (drawn[good][1] - drawn[cheap][1]) / (expected[good][1] - expected[cheap][1])
    assert per_cost > 0 > per_decibel
    assert drawn[beaten][0] == pytest.approx(drawn[cheap][0] + 2 * per_cost, abs=2e-3)
    assert drawn[beaten][1] == pytest.approx(drawn[cheap][1] - 2 * per_decibel, abs=2e-3)
    assert [drawn[k][2] for k in (cheap, beaten, good)] == [True, False, True]


def test_figures_in_the_tables_are_the_reports(page: Page) -> None:
    found = page.rows("Policies in figures")
    assert found["accelaes"][2:] == [
        "6.000",
        "6.000",
        "0.400 (0.300 to 0.500)",
        "1.80 (1.70 to 1.90)",
        "1.80 (1.70 to 1.90)",
        "30.00 (28.00 to 32.00)",
        "0.05000 (0.04000 to 0.06000)",
    ]
    assert page.rows("Differences to dense")["accelaes"] == ["−0.00100 (−0.00150 to −0.000500)"]
    assert any("clip was not measured" in e.text and HOSTILE in e.text for e in page.all("p", "note"))


def test_the_data_inside_is_the_summary(page: Page) -> None:
    data = json.loads(page.all("script")[0].text)
    assert data["evaluation"] == quality_report().model_dump(mode="json")


def test_every_policys_picture_is_there_as_it_is_on_disk(page: Page, folder: Path, made: tuple[ImageRow, ...]) -> None:
    for index, scene in enumerate(page.all("article", "scene")):
        figures = [
            e for e in page.all("figure") if scene in e.around and ("data-policy" in e.attributes or e.has("reference"))
        ]
        labels = [e.attributes.get("data-policy", "dense") for e in figures]
        assert labels == [label for label, *_ in POLICIES]
        for figure, label in zip(figures, labels, strict=True):
            (img,) = pictures(page, figure)
            row = next(r for r in made if r.key == (label, index, 1))
            with Image.open(folder / row.file) as original:
                assert decoded(img.attributes["src"]).tobytes() == original.convert("RGB").tobytes()


def test_a_large_picture_is_as_near_to_the_one_on_disk_as_webp_leaves_it(tmp_path: Path) -> None:
    (scene,) = gallery(rows(tmp_path, prompts=1, side=256), tmp_path, LATENTS)
    assert scene.dense.picture.startswith("data:image/webp")
    with Image.open(tmp_path / scene.dense.row.file) as original:
        pairs = list(zip(decoded(scene.dense.picture).tobytes(), original.convert("RGB").tobytes(), strict=True))
    assert math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(pairs)) < 12


def test_only_policies_with_a_mask_show_mask_heat_map_and_words(
    page: Page, made: tuple[ImageRow, ...], folder: Path
) -> None:
    panel, other = (
        next(e for e in page.all("div", "where") if e.attributes["data-policy"] == name)
        for name in ("accelaes", "drift:budget=8")
    )
    mask, hot = pictures(page, panel)
    assert not pictures(page, other) and "Words" not in other.text
    # Tokens 0, 1, 4 and 5 of 4 x 4 are in focus: the upper left quarter keeps its colours, the rest is dimmed.
    overlay = decoded(mask.attributes["src"])
    shown = next(row for row in made if (row.policy, row.prompt_index, row.seed) == ("accelaes", 0, 1))
    plain = Image.open(folder / shown.file).resize(overlay.size, Image.Resampling.NEAREST)
    half = overlay.width // 2
    focus, background = (8, 8, half - 8, half - 8), (half + 8, half + 8, overlay.width, overlay.width)
    assert overlay.crop(focus).tobytes() == plain.crop(focus).tobytes()
    assert max(overlay.crop(background).tobytes()) <= 28 + 0.42 * 255 < max(plain.crop(background).tobytes())
    assert decoded(hot.attributes["src"]).tobytes() == heat_map(range(16), (4, 4)).tobytes()
    words = {e.text.strip().rpartition(" ")[0]: e.attributes["style"] for e in page.all("li") if panel in e.around}
    assert words == {"red": "--w:0.250", HOSTILE.strip(): "--w:1.000"}


def test_the_comparison_begins_with_the_bundles_own_policy_and_has_labels(page: Page) -> None:
    assert [e.text for e in page.all("option") if "selected" in e.attributes] == ["accelaes"] * 2
    ranges = [e for e in page.all("input") if e.attributes["type"] == "range"]
    assert len(ranges) == 2 and all(e.attributes["aria-label"] for e in ranges)
    assert all(e.attributes.get("alt") is not None for e in page.all("img"))


def test_the_heat_map_grows_lighter_with_affinity() -> None:
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (heat(k / 50) for k in range(51))]
    assert lightness == sorted(lightness) and lightness[-1] - lightness[0] > 180
    drawn = heat_map([0.0, 5.0, 10.0, 2.5] + [99.0] * 4, (2, 2))  # of a video; further frames aren't looked at
    assert [drawn.getpixel((k % 2, k // 2)) for k in range(4)] == [heat(0.0), heat(0.5), heat(1.0), heat(0.25)]
    assert heat_map([3.0] * 4, (2, 2)).getpixel((1, 1)) == heat(0.0)


def test_as_many_prompts_are_shown_as_fit_smaller_before_none_and_the_page_says_how_many(tmp_path: Path) -> None:
    many = rows(tmp_path, prompts=6, side=96)
    everything = gallery(many, tmp_path, LATENTS)
    assert [scene.prompt_index for scene in everything] == list(range(6)) and {s.seed for s in everything} == {1}
    room = sum(scene.size for scene in everything[:3]) + 10
    some = gallery(many, tmp_path, LATENTS, room)
    assert some == everything[:3]
    smaller = gallery(many, tmp_path, LATENTS, everything[0].size - 1)
    assert all(scene.small for scene in everything)
    assert smaller and smaller[0].size < everything[0].size
    assert decoded(smaller[0].dense.picture).width < 96
    assert gallery(many, tmp_path, LATENTS, 10) == ()


def test_a_large_evaluation_makes_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    few = rows(tmp_path, prompts=1, side=320, grain=1)
    many = tuple(row.model_copy(update={"prompt_index": k}) for k in range(200) for row in few)
    html = evaluation_page(quality_report(), many, tmp_path, fake_manifest())
    assert '<article class="scene">' in html and "scene small" not in html
    assert 1_000_000 < len(html.encode()) < 4_000_000
    assert "the file would grow too large with more" in html


def test_equal_pictures_have_an_infinite_psnr_in_the_table_and_no_point(
    folder: Path, made: tuple[ImageRow, ...]
) -> None:
    report = quality_report()
    endless = Interval(value=math.inf, low=math.inf, high=math.inf, pictures=4, prompts=2)
    same = report.policies[1].model_copy(update={"metrics": {"psnr": endless}})
    changed = report.model_copy(update={"policies": (report.policies[0], same, *report.policies[2:])})
    page = Page(evaluation_page(changed, made, folder, fake_manifest()))
    assert page.rows("Policies in figures")["accelaes"][-2:] == ["∞ (∞ to ∞)", ""]
    drawn = next(e for e in page.all("svg", "scatter") if (e.attributes["aria-label"] or "").startswith("PSNR"))
    assert len([e for e in page.all("circle") if drawn in e.around]) == 2
    assert json.loads(page.all("script")[0].text)["evaluation"]["policies"][1]["metrics"]["psnr"]["value"] == "Infinity"


def test_dense_alone_is_shown_without_comparisons(folder: Path, made: tuple[ImageRow, ...]) -> None:
    report = quality_report()
    alone = report.model_copy(update={"policies": report.policies[:1], "absent": ()})
    page = Page(evaluation_page(alone, made, folder, fake_manifest()))
    assert not page.all("svg", "scatter") and not page.all("div", "compare")
    assert len(page.all("figure", "reference")) == 2
    assert any("No metric has figures of two policies" in e.text for e in page.all("p", "note"))


def test_a_missing_picture_is_named(tmp_path: Path, folder: Path, made: tuple[ImageRow, ...]) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    gone = next(row.file for row in made if row.key == ("accelaes", 0, 1))
    (tmp_path / "copy" / gone).write_bytes(b"no picture")
    with pytest.raises(InputError, match="can't be read .*; run the evaluation again"):
        evaluation_page(quality_report(), made, tmp_path / "copy", fake_manifest())


def test_published_figures_stand_in_folded_tables_of_their_own_under_their_label(
    folder: Path, made: tuple[ImageRow, ...], page: Page
) -> None:
    html = evaluation_page(quality_report(), made, folder, fake_manifest(model="lumina-next"))
    shown = Page(html)
    assert_self_contained(shown)
    assert shown.all("h2")[4].text == LABEL and LABEL not in page.html
    section = next(e for e in shown.all("section") if e.attributes["aria-labelledby"] == "published")
    assert [e.text[: len(LABEL)] for e in shown.all("p", "doubt") if section in e.around] == [LABEL]
    folded = [e for e in shown.all("details") if section in e.around]
    assert len(folded) == 2 and not any("open" in e.attributes for e in folded)
    assert all(e.text.startswith(LABEL) for e in shown.all("summary") if section in e.around)
    tables = [(paper, table) for paper in papers_about("lumina-next") for table in paper.tables]
    found = [e for e in shown.all("table") if section in e.around]
    assert [e.text for e in shown.all("h3") if section in e.around] == [paper.heading(table) for paper, table in tables]
    for element, (paper, table) in zip(found, tables, strict=True):
        assert element.around[-2] in folded
        assert element.around[-1].attributes["aria-label"] == paper.heading(table)
        cells = [e.text for e in shown.elements if element in e.around and e.tag in ("th", "td")]
        width = 1 + len(table.columns)
        assert cells[0] == table.rows_are and cells[width:] == [cell for row in table.rows for cell in row]
    # What was measured is shown as without them, in tables that hold nothing else.
    regions = ("Policies in figures", "Differences to dense")
    assert [shown.rows(name) for name in regions] == [page.rows(name) for name in regions]
    assert LABEL not in shown.all("script")[0].text


def test_published_texts_are_shown_and_are_not_markup(
    folder: Path, made: tuple[ImageRow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PublishedTable(
        number=HOSTILE,
        model=HOSTILE,
        recipes=("shapes",),
        note=HOSTILE,
        rows_are=HOSTILE,
        columns=(Column(title=HOSTILE, unit=HOSTILE, better="lower"),),
        rows=((HOSTILE, "~0.10"),),
    )
    paper = Paper(name=HOSTILE, title=HOSTILE, year=2026, source=HOSTILE, tables=(table,))
    monkeypatch.setattr("accelaes_export.measure.quality.published.papers", lambda: (paper,))
    shown = Page(evaluation_page(quality_report(), made, folder, fake_manifest()))
    assert len(shown.all("script")) == 2 and all(e.attributes["src"] != "x" for e in shown.all("img"))
    assert shown.rows(paper.heading(table)) == {HOSTILE: ["~0.10"]}
    assert f"{HOSTILE}, {HOSTILE} ↓" in [e.text for e in shown.all("th")]
