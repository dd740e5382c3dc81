"""The HTML page of a network of 302 layers: its size, and how long a browser takes to open it.

ResNet-302 with random weights goes through ``quantize --bits 4``, so that the page has all charts by layer. Headless
Chromium opens each page afresh several times: *opened* is up to the end of the load event. The light page is drawn
whole by then; of the interactive one *drawn* is up to the last picture that isn't folded away.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from harness import ROOT, Bench, absent, cli, command, spread, workplace

from compresskit.render.html.interactive import library_size

BLOCKS, OPENINGS = 50, 7
LARGEST, LIGHT_LONGEST, LONGEST = 3e6, 0.5, 2.0


def main() -> None:
    bench = Bench("HTML page", __doc__ or "")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        absent("Chromium", "apt-get install chromium")
    with workplace() as folder:
        light, interactive = deep_pages(folder)
        row = f"{6 * BLOCKS + 2} layers"
        for what, size in (
            ("light", light.stat().st_size),
            ("interactive, beyond the library", interactive.stat().st_size - library_size()),
        ):
            bench.row(f"{row}, {what}", "≤ 3 MB", f"{size / 1e6:.2f} MB", 1, "", size <= LARGEST)
        count = 2 if bench.quick else OPENINGS
        at_once, _ = openings(browser, light, count)
        opened, drawn = openings(browser, interactive, count, scripted=True)
    for what, found, bar in (
        ("light, opened", at_once, LIGHT_LONGEST), ("interactive, opened", opened, LONGEST),
        ("interactive, all drawn", drawn, None),
    ):  # fmt: skip
        worst = max(found)
        bench.row(
            f"{row}, {what}, slowest", f"≤ {bar:g} s" if bar else "", f"{worst:.2f} s", len(found), spread(found),
            worst <= bar if bar else None,
        )  # fmt: skip
    bench.end()


def deep_pages(folder: Path) -> tuple[Path, Path]:
    """The light and the interactive page of a real run."""
    sys.path.insert(0, str(ROOT / "examples"))
    from cifar_resnet import ResNet

    torch.manual_seed(0)
    torch.save(ResNet(BLOCKS).state_dict(), folder / "deep.pt")
    cli(
        "quantize", folder / "deep.pt", "--arch", "examples/cifar_resnet.py:ResNet", "--arch-args",
        f'{{"blocks": {BLOCKS}}}', "--input-shape", "1,3,32,32", "--bits", 4, "--no-bench", "--html",
        folder / "deep.html", "-o", folder / "out",
    )  # fmt: skip
    drawn = command("report", folder / "out", "--interactive", "--quiet", "-o", folder / "interactive.html")
    subprocess.run(drawn, cwd=ROOT, check=True)
    return folder / "deep.html", folder / "interactive.html"


def openings(browser: str, page_file: Path, count: int, *, scripted: bool = False) -> tuple[list[float], list[float]]:
    """Seconds to the end of the load event, and to the last picture that scripts draw; a new browser each time."""
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
            if scripted:
                page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
            drawn.append(time.perf_counter() - start)
            running.close()
    return opened, drawn


if __name__ == "__main__":
    main()
