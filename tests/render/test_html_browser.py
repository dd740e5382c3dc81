"""The page in a real browser: drawn whole, without a word in the console, on a phone and in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from report_material import KINDS, full_report, kept

from compresskit.render.html import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@contextmanager
def opened(text: str, folder: Path, width: int, scheme: str, said: list[str]) -> Iterator[Any]:
    """A page in a browser; what the console says goes to ``said``."""
    api = pytest.importorskip("playwright.sync_api")
    page_file = folder / "report.html"
    page_file.write_text(text, encoding="utf-8")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri(), timeout=120_000)
        yield page
        browser.close()


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_a_browser_draws_it_all(tmp_path: Path, width: int, scheme: str) -> None:
    said: list[str] = []
    with opened(html(full_report(), interactive=True), tmp_path, width, scheme, said) as page:
        page.wait_for_selector("html[data-drawn]", timeout=120_000, state="attached")
        unseen = "[...document.querySelectorAll('details:not([open]) .plot')]"
        assert page.evaluate(f"{unseen}.length") > 1 and not page.evaluate(f"{unseen}.some(plot => plot.data)")
        unfold(page)
        places = page.evaluate("document.querySelectorAll('.plot').length")
        page.wait_for_selector(f"html[data-drawn='{places}']", timeout=120_000)
        drawn = page.evaluate("document.querySelectorAll('.plot .main-svg:first-child').length")
        page.set_viewport_size({"width": width, "height": 1500})
        page.wait_for_timeout(1000)
        axis = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(plot => plot._fullLayout.xaxis)"
            ".filter(axis => axis.type === 'log')[1].range"
        )
        wide = page.evaluate("document.documentElement.scrollWidth")
    assert said == []
    assert drawn == places > 4
    assert wide <= width
    assert -1.2 < axis[0] < -1 and -0.05 < axis[1] < 0.05, "0.1 to 0.9 ms, after a resize too"


@pytest.mark.parametrize("kind", KINDS)
def test_the_light_page_fits_a_phone(tmp_path: Path, kind: str) -> None:
    """Nothing lies beyond the edge, folded or not, and no picture leaves its card."""
    said: list[str] = []
    with opened(html(kept(kind)), tmp_path, 390, "dark", said) as page:
        wide = [page.evaluate("document.documentElement.scrollWidth")]
        first = page.evaluate("document.querySelector('.tiles').getBoundingClientRect().bottom")
        unfold(page)
        wide.append(page.evaluate("document.documentElement.scrollWidth"))
        outside = page.evaluate(
            "[...document.querySelectorAll('.plot text')].filter(text => {"
            "const own = text.getBoundingClientRect(), card = text.closest('figure').getBoundingClientRect();"
            "return own.left < card.left || own.right > card.right}).map(text => text.textContent)"
        )
    assert said == [] and wide == [390, 390] and outside == []
    assert first < 500, "the answer is on the first screen"
