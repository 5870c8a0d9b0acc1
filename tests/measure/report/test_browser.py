"""The page in a browser: scripts run under the page's own policy, nothing is wider than a phone, dark is dark."""

from __future__ import annotations

import html as escaping
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from accelaes_export.measure.report.evaluation_page import evaluation_page
from accelaes_export.measure.report.profile_page import profile_page
from tests.fake_bundle import fake_manifest
from tests.measure.report.samples import Page, profile_report, quality_report, rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")

SETTINGS = [
    "--headless",
    "--no-sandbox",  # containers have none, and root may have none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds of page, as files, and an evaluation's with published figures, unfolded."""
    folder = tmp_path_factory.mktemp("pages")
    made = rows(folder)
    texts = {
        "profile": profile_page(profile_report(), fake_manifest()),
        "evaluation": evaluation_page(quality_report(), made, folder, fake_manifest()),
    }
    published = evaluation_page(quality_report(), made, folder, fake_manifest(model="lumina-next"))
    texts["published"] = published.replace("<details>", "<details open>")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def chromium(tmp_path: Path, page: Path, *options: str) -> str:
    command = [str(CHROMIUM), *SETTINGS, f"--user-data-dir={tmp_path / 'browser'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_slider_comes_to_life_and_hostile_texts_do_not(pages: dict[str, Path], tmp_path: Path) -> None:
    page = Page(chromium(tmp_path, pages["evaluation"], "--dump-dom"))
    assert all("hidden" not in e.attributes for e in page.all("div", "compare"))
    assert [e.text for e in page.all("span", "right")] == ["accelaes", "accelaes"]
    shown = [e.attributes["data-policy"] for e in page.all("div", "where") if "hidden" not in e.attributes]
    assert shown == ["accelaes", "accelaes"]
    over, under = page.all("img", "over")[0], page.all("img", "under")[0]
    assert (over.attributes["src"] or "").startswith("data:image") and over.attributes["src"] != under.attributes["src"]
    assert page.all("div", "pair")[0].attributes["style"] == "--cut: 50%;"
    assert "hidden" not in page.all("button")[0].attributes


@pytest.mark.parametrize("name", ["profile", "evaluation", "published"])
def test_nothing_is_wider_than_a_phone(pages: dict[str, Path], tmp_path: Path, name: str) -> None:
    # In a frame 360 pixels wide, without the page's policy, so that it can be asked.
    text = re.sub(r"<meta http-equiv[^>]*>", "", pages[name].read_text(encoding="utf-8"))
    text += "<script>onload = () => { parent.document.title = document.documentElement.scrollWidth; };</script>"
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe width="360" height="800" style="border:0" srcdoc="{escaping.escape(text)}"></iframe>')
    assert re.search(r"<title>(\d+)</title>", chromium(tmp_path, frame, "--dump-dom"))[1] == "360"  # type: ignore[index]


@pytest.mark.parametrize("name", ["profile", "evaluation"])
def test_screenshots_are_light_or_dark_as_the_reader_prefers(pages: dict[str, Path], tmp_path: Path, name: str) -> None:
    lightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        options = (f"--screenshot={shot}", "--window-size=800,1400", f"--blink-settings=preferredColorScheme={number}")
        chromium(tmp_path, pages[name], *options)
        with Image.open(shot) as picture:
            assert picture.width == 800
            grey = picture.convert("L")
        lightness[scheme] = ImageStat.Stat(grey).mean[0]
        assert ImageStat.Stat(grey).stddev[0] > 15  # something stands there
    assert lightness["dark"] < 70 and lightness["light"] > 190
