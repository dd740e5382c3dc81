"""Bad models on every command: the right exit code, one or two lines, nothing left and nothing changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cli_material import ARCH, HOSTILE, SHAPE, Cli, picture

COMMANDS = {
    "quantize": ("quantize", "{}", "--bits", "4", "-o", "out"),
    "quantize8": ("quantize", "{}", "--bits", "8", "--data", "d.npz", "-o", "out"),
    "export": ("export", "{}", "-o", "out.onnx"),
    "bench": ("bench", "{}"),
    "evaluate": ("evaluate", "{}", "--data", "d.npz"),
    "compare": ("compare", "{}", "m.onnx"),
    "inspect": ("inspect", "{}"),
}
TYPED = [name for name in COMMANDS if name != "inspect"]


def command(name: str, model: Path | str, *more: str) -> list[str]:
    """The arguments of a command on a model."""
    return [*(word.format(model) for word in COMMANDS[name]), *more]


def code_of(path: Path) -> int:
    """A path that leads nowhere is the command line's fault, a bad file the input's."""
    return 3 if path.exists() else 2


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("model", HOSTILE)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_model_is_an_input_error(cli: Cli, hostile: Path, name: str, model: str) -> None:
    before = picture(hostile)
    cli(*command(name, hostile / model)).refused(code_of(hostile / model), model)
    assert picture(hostile) == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("model", ["truncated.pt", "text.pt", "pickle.pt", "zipped.pt", "missing.pt", "folder.pt"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_model_with_an_architecture(cli: Cli, hostile: Path, name: str, model: str) -> None:
    cli(*command(name, hostile / model, *ARCH, *SHAPE)).refused(code_of(hostile / model), model)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", COMMANDS)
def test_tensors_of_another_architecture(cli: Cli, name: str) -> None:
    said = "'first.weight'", "'body.weight'", "--arch"
    cli(*command(name, "m.pt", "--arch", "net.py:Other", *SHAPE)).refused(3, "m.pt", *said)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", COMMANDS)
def test_tensors_of_other_shapes(cli: Cli, name: str) -> None:
    more = (*ARCH, *SHAPE, "--arch-args", '{"width": 16}')
    cli(*command(name, "m.pt", *more)).refused(3, "'first.weight'", "[32, 32]", "[16, 32]", "--arch-args")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", TYPED)
def test_an_input_of_another_shape(cli: Cli, name: str) -> None:
    found = cli(*command(name, "m.pt", *ARCH, "--input-shape", "1,33"))
    found.refused(3)
    assert "33" in found.err


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", TYPED)
def test_nan_in_the_weights(cli: Cli, hostile: Path, name: str) -> None:
    cli(*command(name, hostile / "nan.pt", *ARCH, *SHAPE)).refused(3, "'first.weight'", "--allow-nonfinite")


def test_inspect_shows_nan_and_refuses_nothing(cli: Cli, here: Path, hostile: Path) -> None:
    assert cli("inspect", hostile / "nan.pt").code == 0


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("second", ["missing.pt", "truncated.onnx", "tampered"])
def test_a_bad_second_model(cli: Cli, hostile: Path, second: str) -> None:
    cli("compare", "m.onnx", hostile / second, "--no-bench").refused(code_of(hostile / second), second)


@pytest.mark.usefixtures("untouched")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_fifo_does_not_block(cli: Cli, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    cli(*command(name, tmp_path / "pipe.pt")).refused(3, "pipe.pt")


DATA = {
    "missing.npz": None,
    "empty.npz": b"",
    "text.npz": b"Dear reader\n",
    "cut.npz": "half",
}


@pytest.fixture
def bad_data(request: pytest.FixtureRequest, material: Path, tmp_path: Path) -> Path:
    """One damaged data set, outside of the current folder."""
    content = DATA[request.param]
    path = tmp_path / request.param
    if content == "half":
        whole = (material / "d.npz").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    return path


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("bad_data", DATA, indirect=True)
@pytest.mark.parametrize("words", [
    ("quantize", "m.pt", *ARCH, "--bits", "8", "-o", "out", "--data"),
    ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "4", "-o", "out", "--eval-data"),
    ("evaluate", "m.onnx", "--data"),
    ("compare", "m.onnx", "bundle", "--data"),
    ("export", "m.pt", *ARCH, "-o", "out.onnx", "--data"),
], ids=lambda words: f"{words[0]}{words[-1]}")  # fmt: skip
def test_bad_data_is_an_input_error(cli: Cli, bad_data: Path, words: tuple[str, ...]) -> None:
    cli(*words, bad_data).refused(code_of(bad_data), bad_data.name)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ["quantize", "bench", "evaluate", "inspect"])
def test_a_bundle_with_a_file_off_the_record(cli: Cli, tmp_path: Path, name: str) -> None:
    shutil.copytree("bundle", tmp_path / "grown")
    shutil.copyfile("m.onnx", tmp_path / "grown" / "extra.onnx")
    cli(*command(name, tmp_path / "grown")).refused(3, "extra.onnx")
