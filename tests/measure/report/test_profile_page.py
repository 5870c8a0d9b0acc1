"""A profile's page has its figures, draws them where they belong, and takes nothing a text says for markup."""

from __future__ import annotations

import json
import re

import pytest

from accelaes_export.measure.profiling.report import ProfileReport
from accelaes_export.measure.report.profile_page import profile_page
from tests.fake_bundle import fake_manifest
from tests.measure.report.samples import HOSTILE, Element, Page, profile_report


@pytest.fixture(scope="module")
def report() -> ProfileReport:
    return profile_report()


@pytest.fixture(scope="module")
def html(report: ProfileReport) -> str:
    return profile_page(report, fake_manifest(model=HOSTILE))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def bars(page: Page, chart: str) -> dict[str, dict[str, list[float]]]:
    """Of each bar by its label: where in percent bar, spread and limit lie."""
    found: dict[str, dict[str, list[float]]] = {}
    for svg in page.all("svg", "bars"):
        if not (svg.attributes["aria-label"] or "").startswith(chart):
            continue
        for element in page.elements:
            if svg not in element.around or element.tag not in ("rect", "line"):
                continue
            label = next(e for e in page.all("text", "label") if e.around[-1] is element.around[-1]).text
            name = element.attributes["class"] or ""
            ends = ("width",) if name == "bar" else ("x1", "x2")
            places = [float((element.attributes[end] or "").rstrip("%")) for end in ends]
            found.setdefault(label, {}).setdefault(name, []).extend(places)
    return found


def test_the_page_is_well_formed_and_complete(page: Page, html: str) -> None:
    heads = [e.text for e in page.all("h2")]
    assert heads == [
        "One focus step",
        "Plans",
        "Whole denoise",
        "Peers",
        "Beside the denoise",
        "Machine",
        "Bundle",
    ]
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html")[0].attributes["lang"] == "en" and len(page.all("h1")) == 1
    assert all(e.attributes.get("aria-label") for e in page.all("svg"))
    assert len(html) < 200_000


def test_hostile_texts_are_shown_and_are_not_markup(page: Page) -> None:
    assert len(page.all("script")) == 2 and not page.all("img")
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert HOSTILE in page.all("h1")[0].text and HOSTILE in page.all("p", "doubt")[0].text
    assert HOSTILE in page.rows("Policies in figures")
    assert any(HOSTILE in (e.attributes.get("aria-label") or "") for e in page.all("svg"))


def assert_self_contained(page: Page) -> None:
    references = {"src", "href", "srcset", "action", "poster", "data", "background", "xlink:href", "formaction"}
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in references:
                assert (value or "").startswith(("data:", "#")), f"{element.tag} {name}={value}"
            if name == "style":
                assert "url(" not in (value or "")
        assert element.tag not in ("link", "iframe", "object", "embed", "base")
    style = page.all("style")[0].text
    assert "url(" not in style and "@import" not in style and "//" not in style
    script = page.all("script")[1].text
    assert not re.search(r"https?:|//|fetch|XMLHttp|import\b", script)


def test_nothing_is_fetched(page: Page) -> None:
    assert_self_contained(page)
    policy = next(e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy.attributes["content"] or "")


def test_the_data_inside_is_the_report(page: Page, report: ProfileReport) -> None:
    data = json.loads(page.all("script")[0].text)
    assert ProfileReport.model_validate(data["profile"]) == report


def test_bars_are_proportional_and_the_flop_limit_is_dense_times_the_share_of_its_flops(
    page: Page, report: ProfileReport
) -> None:
    drawn = bars(page, "Time of one step")
    full = drawn["n = 16 (100%)"]["bar"][0] / report.buckets[-1].seconds.median
    assert len(drawn) == 3
    for bucket in report.buckets:
        row = drawn[f"n = {bucket.n} ({bucket.fraction:.0%})"]
        assert row["bar"] == [pytest.approx(full * bucket.seconds.median, abs=2e-3)]
        limit = full * report.buckets[-1].seconds.median * bucket.flops_of_dense
        assert row["limit"] == pytest.approx([limit, limit], abs=2e-3)
        assert row["spread"][:2] == pytest.approx([full * bucket.seconds.p10, full * bucket.seconds.p90], abs=2e-3)


@pytest.mark.parametrize("images", [1, 4])
def test_a_denoises_limit_is_denses_time_over_the_flop_limit_and_peers_have_none(
    page: Page, report: ProfileReport, images: int
) -> None:
    drawn = bars(page, "Time of a denoise, one picture" if images == 1 else "Time of a denoise, 4 pictures")
    shown = [p for p in (*report.policies, *report.peers) if p.images == images]
    dense = shown[0].seconds.median
    full = drawn["dense"]["bar"][0] / dense
    assert set(drawn) == {p.name for p in shown}
    for profile in shown:
        assert drawn[profile.name]["bar"] == [pytest.approx(full * profile.seconds.median, abs=2e-3)]
        if profile.flop_limit is None:
            assert "limit" not in drawn[profile.name]
        else:
            place = full * dense / profile.flop_limit
            assert drawn[profile.name]["limit"] == pytest.approx([place, place], abs=2e-3)


def test_a_plans_columns_are_as_high_as_n_over_N(page: Page) -> None:
    svg = next(e for e in page.all("svg") if e.attributes["aria-label"] == "Plan of accelaes: DDDDDDb.Da.D")
    columns = [e for e in page.all("rect") if svg in e.around]
    heights = {"D": "40.0", "b": "20.0", "a": "10.0", ".": "2.0"}
    kinds = {"D": "dense", "b": "sparse", "a": "sparse", ".": "skip"}
    assert [c.attributes["height"] for c in columns] == [heights[symbol] for symbol in "DDDDDDb.Da.D"]
    assert [c.attributes["class"] for c in columns] == [f"step {kinds[symbol]}" for symbol in "DDDDDDb.Da.D"]
    places = [float((c.attributes["x"] or "").rstrip("%")) for c in columns]
    assert places == pytest.approx([100 * k / 12 for k in range(12)], abs=1e-3)


def test_figures_in_the_tables_are_the_reports(page: Page) -> None:
    buckets = page.rows("Buckets in figures")
    assert buckets["8"][:6] == ["30.00 (27.00–33.00)", "15.00", "60.00", "0.75 (0.68–0.83)", "0.500", "0.67"]
    policies = page.rows("Policies in figures")
    assert policies["accelaes"][:6] == ["1", "250.0 (225.0–275.0)", "4.00", "1.60 (1.44–1.76)", "2.00", "0.80"]
    assert page.rows("Peers in figures")["eager peer"][4:6] == ["6", "6"]
    assert page.rows("Text encoders and VAE") == {"vae": ["1", "100.0 (90.00–110.0)", "200"]}


def test_the_first_figures_are_denses_and_those_of_the_bundles_own_policy(page: Page) -> None:
    (summary,) = page.all("ul", "summary")
    figures = [e.text for e in page.all("li") if summary in e.around]
    assert figures == [
        "40.0 ms one dense step, N = 16",
        "400 ms a picture, 12 dense steps",
        "1.60 × dense / accelaes, the bundle's own policy; 2.00 by FLOPs",
        "2.5% of a dense step's time is spent outside the engine at each step of accelaes",
    ]


def test_what_was_not_measured_is_said(page: Page, report: ProfileReport) -> None:
    assert any("absent peer was not measured" in e.text and HOSTILE in e.text for e in page.all("p", "note"))
    bare = report.model_copy(update={"peers": (), "absent": (), "parts": (), "parts_note": "no pipeline", "notes": ()})
    without_dense = bare.model_copy(update={"policies": tuple(p for p in bare.policies if p.name == "accelaes")})
    for changed in (bare, without_dense):
        plain = Page(profile_page(changed, fake_manifest()))
        assert "Peers" not in [e.text for e in plain.all("h2")] and not plain.all("p", "doubt")
        assert any("were not measured: no pipeline" in e.text for e in plain.all("p", "note"))
    assert "limit" not in bars(plain, "Time of a denoise, one")["accelaes"]


def test_the_manifest_and_everything_known_of_the_machine_are_there(page: Page) -> None:
    folded: list[Element] = page.all("pre")
    manifest = next(e.text for e in folded if "build_key" in e.text)
    assert json.loads(manifest) == fake_manifest(model=HOSTILE).model_dump(mode="json")
    assert any(json.loads(e.text).get("memory_bytes") == 16e9 for e in folded)
