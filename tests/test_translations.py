"""A translation that was kept gives the file that a new one gives, and is taken for nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import translations

from compresskit.exporter.onnx_export import export_onnx
from compresskit.model import InputSpec


class Net(torch.nn.Module):
    """A perceptron with a constant, which can be another in one thing."""

    def __init__(self, other: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
        self.act = torch.nn.SiLU() if other == "operator" else torch.nn.ReLU()
        self.slope = 0.5 if other == "number" else 0.25
        self.register_buffer("shift", torch.arange(4.0), persistent=other != "buffer")
        with torch.no_grad():
            self.last.weight[3, 15] += other == "weight"
            self.shift[2] += other == "constant"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x))) * self.slope + self.shift


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is kept."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setenv(translations.PLACE, str(folder))
    return folder


def exported(path: Path, module: torch.nn.Module, batch: str | int = "batch", name: str = "x") -> bytes:
    export_onnx(module.eval(), (InputSpec(name, "float32", (batch, 8)),), path)
    return path.read_bytes()


def test_what_was_kept_gives_the_same_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    made: list[object] = []
    (real,) = torch.onnx.export.args  # type: ignore[attr-defined]  # what the tests put in its place

    def counted(*args: object, **options: object) -> object:
        made.append(args)
        return real(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", partial(translations._export, counted))
    first, again = (exported(tmp_path / "a.onnx", Net()) for _ in range(2))
    assert len(made) == len(list(place.iterdir())) == 1
    request.getfixturevalue("translated_anew")
    assert exported(tmp_path / "a.onnx", Net()) == again == first
    assert len(made) == 2


@pytest.mark.parametrize("other", ["operator", "number", "buffer", "weight", "constant", "axis", "name"])
def test_another_program_has_its_own(place: Path, tmp_path: Path, other: str) -> None:
    exported(tmp_path / "a.onnx", Net())
    exported(tmp_path / "b.onnx", Net(other), 2 if other == "axis" else "batch", "y" if other == "name" else "x")
    assert len(list(place.iterdir())) == 2
