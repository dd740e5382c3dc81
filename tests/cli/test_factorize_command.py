"""``factorize`` and ``inspect --spectrum`` as typed."""

from __future__ import annotations

import json
from pathlib import Path

from cli_material import Cli

ARCH = ("--arch", "net.py:Net")


def test_a_model_is_factorized_and_merged(cli: Cli, here: Path) -> None:
    options = ("--rank", 1, "--round-to", 1, "--no-bench", "-q", "--input-shape", "1,32")
    done = cli("factorize", "m.pt", *ARCH, *options, "-o", "out", "--json", "out.json")
    assert done.code == 0, done.err
    report = json.loads((here / "out.json").read_text())
    assert report["history"][-1]["name"] == "factorize.auto"
    assert all("rank 1" in about for about in report["coverage"]["done"].values())
    assert cli("factorize", "out", *ARCH, "--merge", "--no-bench", "-q", "-o", "merged").code == 0
    cli("factorize", "m.pt", *ARCH, "--input-shape", "1,32", "-o", "no").refused(2, "no target is given")
    cli("factorize", "m.pt", *ARCH, "--input-shape", "1,32", "--rank", 99, "-o", "no").refused(2, "--rank 99 is above")


def test_the_spectrum_is_shown_and_written(cli: Cli, here: Path) -> None:
    shown = cli("inspect", "m.pt", *ARCH, "--spectrum", "--json", "i.json")
    assert shown.code == 0, shown.err
    assert "spectrum: effective rank" in shown.out
    layers = json.loads((here / "i.json").read_text())["spectrum"]
    assert layers
    for layer in layers:
        assert 0 < layer["effective_rank"] <= layer["rank"] == min(layer["shape"])
        kept = [layer["kept"][budget] for budget in ("80", "60", "40")]
        assert kept == sorted(kept, reverse=True)
    cli("inspect", "m.pt", "--spectrum").refused(2, "--spectrum needs a module")
