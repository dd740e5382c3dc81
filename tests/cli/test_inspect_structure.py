"""``inspect --structure``: the document, the table, the page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from cli_material import ARCH, Cli

RUN = ("inspect", "m.pt", *ARCH, "--structure", "--data", "d.npz", "--samples", "64")


def test_the_document_has_every_part(cli: Cli, here: Path) -> None:
    done = cli(*RUN, "--json", "-")
    assert done.code == 0, done.err
    found = json.loads(done.out)["structure"]
    assert {"blocks", "halves", "units", "regions", "symmetry", "experts", "alike", "readings"} <= found.keys()
    assert found["samples"] == 64 and found["data"] == "d.npz" and len(found["sha256"]) == 64
    (row,) = found["units"]["layers"]
    assert row["name"] == "act" and row["units"] == 32
    assert found["savings"]["units"] is None or found["savings"]["units"]["macs"] > 0
    assert all({"finding", "method", "options", "saves"} == set(reading) for reading in found["readings"])
    assert found["regions"]["exact"] and found["regions"]["regions"] > 2
    assert cli(*RUN, "--json", "-").out == done.out


def test_the_table_and_the_page_say_the_same(cli: Cli, here: Path) -> None:
    done = cli(*RUN, "--html", "page.html")
    assert done.code == 0, done.err
    assert "linear regions between two samples" in done.out and "what could work" in done.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Regions of a slice" in page and page.count("<polygon") > 2
    assert "What could work" in page and "<script" not in page
    again = cli(*RUN, "--html", "page.html")
    assert again.code == 0, again.err


def test_what_does_not_fit_is_refused(cli: Cli, here: Path) -> None:
    cli("inspect", "m.pt", *ARCH, "--structure").refused(2, "--structure needs samples", "--data")
    cli("inspect", "m.pt", "--structure", "--data", "d.npz").refused(2, "--structure needs a module", "--arch")
    cli("inspect", "m.pt", *ARCH, "--html", "page.html").refused(2, "--html is for --structure")
    assert not Path("page.html").exists()
