"""What ``inspect`` says each stage could do: held against what the stages then do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_material import ARCH, SHAPE, Cli

from compresskit.recipe.reading import read_recipe

NETS = """\
import torch
from torch import nn


def block(a, b):
    return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


class Cnn(nn.Sequential):
    def __init__(self):
        super().__init__(*block(3, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(300, 64)
        self.norm = nn.LayerNorm(64)
        self.up, self.down, self.head = nn.Linear(64, 200), nn.Linear(200, 64), nn.Linear(64, 6)

    def forward(self, ids):
        x = self.norm(self.words(ids))
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


class Tied(Text):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.norm(self.words(ids))
        return self.head(x + self.down(torch.relu(self.up(x))))


class Narrow(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 48))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.mix(x, x, x, need_weights=False)[0]).mean(1)


class Waves(nn.Sequential):
    def __init__(self):
        convs = nn.Conv1d(8, 64, 5), nn.ReLU(), nn.Conv1d(64, 64, 5, groups=4)
        super().__init__(*convs, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5))
"""
INPUTS = {
    "Cnn": (3, 16, 16), "Mlp": (128,), "Text": (12,), "Tied": (12,), "Narrow": (2,), "Attention": (9, 64),
    "Waves": (8, 32),
}  # fmt: skip


def saved(folder: Path, name: str) -> tuple[str, ...]:
    """A model of each kind with data; the words that name it."""
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    space: dict[str, Any] = {}
    exec(NETS, space)
    torch.manual_seed(0)
    torch.save(space[name]().state_dict(), folder / "net.pt")
    rng = np.random.default_rng(0)
    shape = (64, *INPUTS[name])
    x = rng.integers(0, 300, shape) if "T" in name else rng.normal(size=shape).astype(np.float32)
    given = {"Text": "ids", "Tied": "ids", "Attention": "x"}.get(name, "input")
    np.savez(folder / "data.npz", **{given: x, "y": np.arange(64) % 4})
    return ("net.pt", "--arch", f"nets.py:{name}")


def inspected(cli: Cli, *words: object) -> dict[str, Any]:
    done = cli("inspect", *words, "--json", "-")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def forms(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {form["form"]: form for form in found["estimates"]["quantize"]["forms"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = ("Cnn", "Text", "Attention")
EVERY = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in INPUTS]


@pytest.mark.parametrize("name", EVERY)
def test_the_sizes_are_those_that_quantize_gives(cli: Cli, place: Path, name: str) -> None:
    words = (*saved(place, name), "--data", "data.npz")
    found = inspected(cli, *words)
    sizes = forms(found)
    for bits in (8, 4):
        assert cli("quantize", *words, "--method", "rtn", "--bits", bits, "--no-bench", "-q", "-o", f"w{bits}").code < 2
        real = (place / f"w{bits}" / "model.onnx").stat().st_size
        assert sizes[f"{bits} bit weights"]["bytes"] == pytest.approx(real, rel=0.06)
    original = json.loads((place / "w4" / "report.json").read_text(encoding="utf-8"))["models"][0]["bytes"]
    assert found["estimates"]["quantize"]["float_bytes"] == pytest.approx(original, rel=0.03)
    assert cli("quantize", *words, "--bits", 8, "--no-bench", "-q", "-o", "i8").code < 2
    assert sizes["8 bit"]["bytes"] == pytest.approx((place / "i8" / "model.onnx").stat().st_size, rel=0.06)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_packed_tensors_are_counted_to_the_byte(cli: Cli, place: Path, bits: int) -> None:
    """Of bare tensors there are no operators to estimate: all that differs is the header of the file."""
    saved(place, "Text")
    found = inspected(cli, "net.pt")
    assert cli("quantize", "net.pt", "--bits", bits, "-q", "-o", "out").code == 0
    data = (place / "out" / "model.safetensors").read_bytes()
    held = len(data) - 8 - int.from_bytes(data[:8], "little")
    assert forms(found)[f"{bits} bit weights"]["bytes"] == held


def test_an_onnx_file_has_sizes_and_ranks_and_no_channels(cli: Cli, place: Path) -> None:
    assert cli("export", *saved(place, "Mlp"), "--input-shape", "1,128", "-q", "-o", "m.onnx").code == 0
    found = inspected(cli, "m.onnx")
    assert found["estimates"]["quantize"]["float_bytes"] == (place / "m.onnx").stat().st_size
    for form, words in (("8 bit", ("--data", "data.npz")), ("8 bit products", ())):
        assert cli("quantize", "m.onnx", *words, "--no-bench", "-q", "-o", "out", "--force").code < 2
        real = (place / "out" / "model.onnx").stat().st_size
        assert forms(found)[form]["bytes"] == pytest.approx(real, rel=0.06)
    assert found["estimates"]["prune"] == {"known": False, "reason": "a graph has no module to cut"}
    ranks = sorted(r["svd"] for r in found["estimates"]["factorize"]["layers"].values())
    assert ranks == [8, 80, 120]  # 16×256: 15.06; 256×128: 85.3; 256×256: below 128


def test_what_is_quantized_already_gains_nothing(cli: Cli, here: Path) -> None:
    for words in (("bundle", *ARCH, *SHAPE), ("bundle/model.onnx",)):
        found = inspected(cli, *words)
        assert found["estimates"]["quantize"] == {"forms": [], "reason": "quantized already"}
        assert "suggestion" not in found["estimates"]
        cli("inspect", *words, "--suggest", "r.yaml").refused(3, "quantized already")
        assert not (here / "r.yaml").exists()


@pytest.mark.parametrize(
    ("name", "layer", "kind"), [("Mlp", "0", "svd"), ("Cnn", "3", "spatial"), ("Cnn", "3", "tucker")]
)
def test_factorize_takes_the_break_even_rank_and_not_the_next(
    cli: Cli, place: Path, name: str, layer: str, kind: str
) -> None:
    words = saved(place, name)
    found = inspected(cli, *words, "--data", "data.npz")
    rank = found["estimates"]["factorize"]["layers"][layer][kind]
    assert rank % 8 == 0 and rank > 0
    common = ("factorize", *words, "--method", kind, "--include", layer, "--data", "data.npz", "--no-bench", "-q")
    report = ("--json", "r.json", "--force", "-o", "out")
    assert cli(*common, "--rank", rank, *report).code < 2
    before, after = json.loads((place / "r.json").read_text(encoding="utf-8"))["models"]
    assert after["parameters"] < before["parameters"]
    assert cli(*common, "--rank", rank + 8, *report).code in (2, 3)


def test_what_can_be_cut_is_what_prune_cuts(cli: Cli, place: Path) -> None:
    words = (*saved(place, "Cnn"), "--data", "data.npz")
    found = inspected(cli, *words)["estimates"]["prune"]
    assert found["known"] and found["parameters"] == found["macs"] == 1
    least = found["least"]["macs"]
    prune = ("prune", *words, "--no-bench", "-q", "-o", "out", "--force")
    cli(*prune, "--target-macs", least - 0.001).refused(2, "can't be met")
    assert cli(*prune, "--target-macs", least + 0.001).code < 2


def test_a_model_that_cannot_be_run_has_unknown_channels(cli: Cli, here: Path) -> None:
    found = inspected(cli, "m.pt", *ARCH)
    assert found["estimates"]["prune"] == {"known": False, "reason": "needs the shape of the input: `input_shape`"}
    assert forms(found)["4 bit weights"]["macs_on_codes"] is None


def test_sensitivity_is_worst_first_and_finds_the_fragile_layer(cli: Cli, place: Path) -> None:
    words = saved(place, "Mlp")
    state = torch.load(place / "net.pt", weights_only=True)
    state["2.weight"][:, ::8] *= 40  # groups that one large column spoils for the others
    torch.save(state, place / "net.pt")
    found = inspected(cli, *words, "--data", "data.npz", "--sensitivity")["estimates"]["sensitivity"]
    losses = [layer["loss"] for layer in found["layers"]]
    assert found["layers"][0]["name"] == "2"
    assert losses == sorted(losses, reverse=True) and min(losses) > 0
    assert (found["bits"], found["samples"], found["data"]) == (4, 32, "data.npz")
    shown = cli("inspect", *words, "--data", "data.npz", "--sensitivity").out
    assert "█" * 24 in shown and "one layer alone is quantized to 4 bits" in shown


@pytest.mark.parametrize("name", ["Cnn", pytest.param("Mlp", marks=pytest.mark.slow), "Text", "Narrow"])
def test_a_suggested_recipe_is_valid_and_runs(cli: Cli, place: Path, name: str) -> None:
    words = saved(place, name)
    assert cli("inspect", *words, "--data", "data.npz", "--suggest", "r.yaml", "-q").code == 0
    (recipe,) = read_recipe(place / "r.yaml")
    assert recipe.steps[0].stage.kind.name == "quantize" and recipe.max_drop is not None
    assert cli("recipe", "check", "r.yaml").code == 0
    run = ("run", "r.yaml", *words, "--data", "data.npz", "--eval-data", "data.npz", "--no-bench", "-q", "--no-cache")
    assert cli(*run, "-o", "out").code in (0, 1)
    printed = cli("inspect", *words, "--data", "data.npz", "--suggest", "-")
    assert printed.out == (place / "r.yaml").read_text(encoding="utf-8")


def test_the_command_that_is_shown_runs(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = saved(place, "Cnn")
    shown = cli("inspect", *words, "--input-shape", "1,3,16,16").out
    line = next(line for line in shown.splitlines() if line.strip().startswith("compresskit quantize"))
    assert line.split() == [
        "compresskit",
        "quantize",
        *words,
        "--input-shape",
        "1,3,16,16",
        "--bits",
        "8",
        "--data",
        "DATA",
    ]
    typed = [word.replace("DATA", "data.npz") for word in line.split()[1:]]
    assert cli(*typed, "--no-bench", "-q", "-o", "out").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("m.pt", *ARCH, *SHAPE, "--sensitivity"), "--data"),
        (("m.onnx", "--sensitivity", "--data", "d.npz"), "--arch"),
        (("m.pt", "--sensitivity", "--data", "d.npz"), "--arch"),
        (("m.pt", *ARCH, *SHAPE, "--data", "d.npz"), "--sensitivity"),
        (("m.pt", *ARCH, *SHAPE, "--suggest", "net.py"), "net.py"),
        (("m.pt", *ARCH, *SHAPE, "--suggest", "nowhere/r.yaml"), "nowhere"),
        (("m.pt", *ARCH, *SHAPE, "--suggest", "-", "--json", "-"), "one document"),
        (("m.pt", *ARCH, *SHAPE, "--normalize", "imagenet"), "--normalize"),
    ],
)
def test_what_does_not_fit_is_refused(
    cli: Cli, here: Path, words: tuple[str, ...], said: str, untouched: object
) -> None:
    cli("inspect", *words).refused(2, said)


def test_a_file_that_is_there_stays_without_force(cli: Cli, here: Path) -> None:
    (here / "r.yaml").write_text("mine\n", encoding="utf-8")
    cli("inspect", "m.pt", *ARCH, *SHAPE, "--suggest", "r.yaml").refused(2, "r.yaml exists already", "--force")
    assert (here / "r.yaml").read_text(encoding="utf-8") == "mine\n"
    assert cli("inspect", "m.pt", *ARCH, *SHAPE, "--suggest", "r.yaml", "--force", "-q").code == 0
    read_recipe(here / "r.yaml")


@pytest.mark.slow
def test_real_models_sizes(cli: Cli, place: Path, shared: Path, minilm: Path, root: Path) -> None:
    arch = ("--arch", f"{root / 'examples' / 'cifar_resnet.py'}:resnet20", "--input-shape", "1,3,32,32")
    for words in ((shared / "models" / "resnet20.th", *arch), (minilm,), (shared / "models" / "stories260k",)):
        sizes = forms(inspected(cli, *words))
        for bits in (8, 4):
            assert cli("quantize", *words, "--bits", bits, "--no-bench", "-q", "-o", "out", "--force").code < 2
            real = (place / "out" / "model.onnx").stat().st_size
            assert sizes[f"{bits} bit weights"]["bytes"] == pytest.approx(real, rel=0.02)
