"""The page in a real browser: drawn whole, without a word in the console, on a phone and in the dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from report_material import full_report

from compresskit.render.html import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_a_browser_draws_it_all(tmp_path: Path, width: int, scheme: str) -> None:
    api = pytest.importorskip("playwright.sync_api")
    page_file = tmp_path / "report.html"
    page_file.write_text(html(full_report()), encoding="utf-8")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri(), timeout=120_000)
        page.wait_for_selector("html[data-drawn]", timeout=120_000)
        drawn, places = page.evaluate(
            "[document.querySelectorAll('.plot .main-svg:first-child').length, "
            "document.querySelectorAll('.plot').length]"
        )
        page.set_viewport_size({"width": width, "height": 1500})
        page.wait_for_timeout(1000)
        axis = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(plot => plot._fullLayout.xaxis)"
            ".find(axis => axis.type === 'log').range"
        )
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert said == []
    assert drawn == places > 5
    assert wide <= width
    assert -1.2 < axis[0] < -1 and -0.05 < axis[1] < 0.05, "0.1 to 0.9 ms, after a resize too"
