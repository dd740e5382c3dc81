"""The HTML page of a network of 302 layers: its size beyond the plotting library, and how long a browser takes for it.

ResNet-302 with random weights goes through ``quantize --bits 4 --html``, so that the page has all charts by layer.
Headless Chromium opens the file afresh several times: *opened* is up to the end of the load event, by then what is on
the screen is drawn; *drawn* is up to the last picture.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch
from harness import ROOT, Bench, absent, cli, spread, workplace

from compresskit.render.html.page import library_size

BLOCKS, OPENINGS = 50, 7
LARGEST, LONGEST = 3e6, 2.0


def main() -> None:
    bench = Bench("HTML page", __doc__ or "")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        absent("Chromium", "apt-get install chromium")
    with workplace() as folder:
        page = deep_page(folder)
        beyond = page.stat().st_size - library_size()
        row = f"{6 * BLOCKS + 2} layers"
        bench.row(f"{row}, beyond the library", "≤ 3 MB", f"{beyond / 1e6:.2f} MB", 1, "", beyond <= LARGEST)
        opened, drawn = openings(browser, page, 2 if bench.quick else OPENINGS)
    for what, found, bar in (("opened", opened, LONGEST), ("all drawn", drawn, None)):
        worst = max(found)
        bench.row(
            f"{row}, {what}, slowest", f"≤ {bar:g} s" if bar else "", f"{worst:.2f} s", len(found), spread(found),
            worst <= bar if bar else None,
        )  # fmt: skip
    bench.end()


def deep_page(folder: Path) -> Path:
    """The page of a real run."""
    sys.path.insert(0, str(ROOT / "examples"))
    from cifar_resnet import ResNet

    torch.manual_seed(0)
    torch.save(ResNet(BLOCKS).state_dict(), folder / "deep.pt")
    cli(
        "quantize", folder / "deep.pt", "--arch", "examples/cifar_resnet.py:ResNet", "--arch-args",
        f'{{"blocks": {BLOCKS}}}', "--input-shape", "1,3,32,32", "--bits", 4, "--no-bench", "--html",
        folder / "deep.html", "-o", folder / "out",
    )  # fmt: skip
    return folder / "deep.html"


def openings(browser: str, page_file: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds to the end of the load event, and to the last picture; a new browser each time."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright", "pip install 'compresskit[dev]'")
    opened, drawn = [], []
    with sync_playwright() as play:
        for _ in range(count):
            running = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = running.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(page_file.as_uri(), timeout=120_000)
            opened.append(time.perf_counter() - start)
            page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
            drawn.append(time.perf_counter() - start)
            running.close()
    return opened, drawn


if __name__ == "__main__":
    main()
