"""The notebook runs from its first cell to its last, as it does on a machine with CompressKit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "compress_digits.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_notebook_finds_a_model_and_uses_it(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install nbclient ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "outputs are not kept in the repository"
    nbclient.NotebookClient(book, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [
        "".join(out["text"] for out in cell.get("outputs", ()) if out.get("name") == "stdout") for cell in book.cells
    ]
    assert said[6].startswith("PASS"), said[6]
    assert "→" in said[8]
    answers, labels = re.findall(r"\[[^]]*\]", said[-1])
    same = sum(a == b for a, b in zip(re.findall(r"\d", answers), re.findall(r"\d", labels), strict=True))
    assert same >= 7, said[-1]
