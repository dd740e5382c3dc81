"""Bad models on every command: the right exit code, one or two lines, nothing left and nothing changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_material import ARCH, HOSTILE, SHAPE, Cli, picture

WEIGHTS_ONLY = {
    "quantize": ("quantize", "{}", "--bits", "4", "-o", "out"),
    "quantize8": ("quantize", "{}", "--bits", "8", "--data", "d.npz", "-o", "out"),
    "export": ("export", "{}", "-o", "out.onnx"),
    "bench": ("bench", "{}"),
    "evaluate": ("evaluate", "{}", "--data", "d.npz"),
    "compare": ("compare", "{}", "m.onnx"),
    "inspect": ("inspect", "{}"),
}


def command(name: str, model: Path | str, *more: str) -> list[str]:
    """The arguments of a command on a model."""
    return [word.format(model) for word in WEIGHTS_ONLY[name]] + list(more)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("model", HOSTILE)
@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_a_bad_model_is_an_input_error(cli: Cli, hostile: Path, name: str, model: str) -> None:
    before = picture(hostile)
    cli(*command(name, hostile / model)).refused(3, model)
    assert picture(hostile) == before
