"""``compresskit prune``: channels, from the command line to the bundle and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_material import Cli

CONV = """\
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, outside - inside

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(out + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.one, self.two = Block(16, 16, 1), Block(16, 32, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.two(self.one(F.relu(self.stem(x)))).mean((2, 3)))
"""
ARCH = ("--arch", "conv.py:Net", "--input-shape", "1,3,12,12")
QUICK = ("--no-bench", "--quiet")
BARE = (*QUICK, "--no-export")


@pytest.fixture
def conv(here: Path) -> Path:
    """The current folder with a small residual network, conv.pt, and labelled data for it, conv.npz."""
    (here / "conv.py").write_text(CONV, encoding="utf-8")
    space: dict[str, object] = {}
    exec(CONV, space)  # the fixture's own text
    torch.manual_seed(0)
    net = space["Net"]().eval()  # type: ignore[operator]
    torch.save(net.state_dict(), here / "conv.pt")
    x = np.random.default_rng(0).normal(size=(128, 3, 12, 12)).astype(np.float32)
    np.savez(here / "conv.npz", x=x, y=net(torch.from_numpy(x)).argmax(1).numpy())
    return here


def outputs(bundle: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(4, 3, 12, 12)).astype(np.float32)
    return session.run(None, {"x": x})[0]


def test_prune_and_read_again(conv: Path, cli: Cli) -> None:
    done = cli("prune", "conv.pt", *ARCH, "--target-macs", "0.6", "--data", "conv.npz", "-o", "out", *QUICK)
    assert done.code == 0, done
    report = json.loads((conv / "out" / "report.json").read_text())
    before, after = report["models"]
    assert after["macs"] <= 0.6 * before["macs"] and after["parameters"] < before["parameters"]
    assert report["coverage"]["skipped"] == {"head": "it produces the model's output"}
    assert "channels" in report["coverage"]["done"]["one.bn1"]
    assert any("widths are multiples of 8" in note for note in report["notes"])
    facts = json.loads((conv / "out" / "compresskit.json").read_text())["history"][0]["facts"]
    assert set(facts["rewritten"]) == {"two"}
    assert facts["share"]["macs"] == pytest.approx(after["macs"] / before["macs"], abs=1e-3)
    for name, kept in facts["kept"].items():
        assert len(kept) == facts["layers"][name]["out"][1]

    again = cli("export", "out", "--arch", "conv.py:Net", "-o", "again.onnx", "--quiet")
    assert again.code == 0, again
    (conv / "second").mkdir()
    (conv / "again.onnx").rename(conv / "second" / "model.onnx")
    assert np.abs(outputs(conv / "out") - outputs(conv / "second")).max() <= 1e-6


def test_a_pruned_bundle_is_pruned_and_quantized_further(conv: Path, cli: Cli) -> None:
    assert cli("prune", "conv.pt", *ARCH, "--target-params", "0.7", "-o", "one", *BARE).code == 0
    arch = ("--arch", "conv.py:Net")
    assert cli("prune", "one", *arch, "--ratio", "0.3", "-o", "two", *BARE).code == 0
    last = cli("quantize", "two", *arch, "--bits", "8", "--method", "rtn", "-o", "three", *QUICK)
    assert last.code == 0, last
    card = json.loads((conv / "three" / "compresskit.json").read_text())
    assert [step["name"] for step in card["history"]] == ["prune.structured", "prune.structured", "quantize.rtn"]
    assert cli("export", "three", *arch, "-o", "three.onnx", "--quiet").code == 0


def test_steps_with_training_between(conv: Path, cli: Cli) -> None:
    done = cli(
        "prune", "conv.pt", *ARCH, "--target-macs", "0.5", "--steps", "2", "--epochs", "3", "--data", "conv.npz",
        "--samples", "64", "-o", "out", *BARE,
    )  # fmt: skip
    assert done.code == 0, done
    facts = json.loads((conv / "out" / "compresskit.json").read_text())["history"][0]["facts"]
    assert facts["share"]["macs"] <= 0.5
    trained = [note.split()[:5] for note in facts["notes"] if ": trained for" in note]
    assert trained == [["step", "1:", "trained", "for", "1"], ["step", "2:", "trained", "for", "2"]]
    assert [point["epoch"] for point in facts["training"]["curve"]] == [1, 2, 3]
    for name, kept in facts["kept"].items():
        assert kept == sorted(set(kept)) and len(kept) == facts["layers"][name]["out"][1]


@pytest.mark.usefixtures("translated_anew")
def test_the_same_command_gives_the_same_bytes(conv: Path, cli: Cli) -> None:
    for name in ("a", "b"):
        arguments = ("--target-macs", "0.6", "--data", "conv.npz", "--threads", "1", "-o", name)
        assert cli("prune", "conv.pt", *ARCH, *arguments, *QUICK).code == 0
    assert (conv / "a" / "model.safetensors").read_bytes() == (conv / "b" / "model.safetensors").read_bytes()
    assert (conv / "a" / "model.onnx").read_bytes() == (conv / "b" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ratio", "1.0"), ("--ratio", "less than 1")),
        (("--target-macs", "0"), ("--target-macs", "greater than 0")),
        ((), ("one of --target-macs", "--ratio")),
        (("--ratio", "0.5", "--target-macs", "0.5"), ("--target-macs and --ratio",)),
        (("--target-macs", "0.01"), ("can't be met", "remains", "give 0.")),
        (("--target-macs", "0.5", "--include", "nowhere*"), ("no layer matches 'nowhere*'", "stem")),
        (("--target-macs", "0.5", "--exclude", "conv9"), ("no layer matches 'conv9'",)),
        (("--target-macs", "0.5", "--epochs", "2"), ("--data",)),
        (("--target-macs", "0.5", "--lr", "0.5"), ("--lr is for training", "--epochs")),
        (("--target-macs", "0.5", "--steps", "2"), ("--epochs",)),
        (("--target-macs", "0.5", "--importance", "taylor"), ("--data",)),
        (("--target-macs", "0.5", "--importance", "magic"), ("magic",)),
    ],
)
def test_wrong_commands(conv: Path, cli: Cli, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    cli("prune", "conv.pt", *ARCH, *arguments, "-o", "out", *QUICK).refused(2, *words)
    assert not (conv / "out").exists()


def test_a_bundle_with_damaged_facts_is_refused(conv: Path, cli: Cli) -> None:
    assert cli("prune", "conv.pt", *ARCH, "--target-macs", "0.6", "-o", "out", *BARE).code == 0
    card = conv / "out" / "compresskit.json"
    text = card.read_text()
    data = json.loads(text)
    data["history"][0]["facts"]["layers"]["one.conv1"]["out"] = [16, 99]
    card.write_text(json.dumps(data))
    cli("export", "out", "--arch", "conv.py:Net", "-o", "no.onnx").refused(3, "one.conv1")


def test_labels_that_are_unknown_or_no_class(conv: Path, cli: Cli) -> None:
    arguments = ("--target-macs", "0.6", "--importance", "taylor", "-o", "out", *BARE)
    found = dict(np.load("conv.npz"))
    np.savez("few.npz", x=found["x"], y=np.where(np.arange(128) % 2, found["y"], -1))
    assert cli("prune", "conv.pt", *ARCH, "--data", "few.npz", *arguments).code == 0
    np.savez("bad.npz", x=found["x"], y=np.full(128, 9))
    cli("prune", "conv.pt", *ARCH, "--data", "bad.npz", *arguments, "--force").refused(3, "label 9", "4 classes")


def test_fitting_to_the_evaluation_data_is_said(conv: Path, cli: Cli) -> None:
    same = ("--data", "conv.npz", "--eval-data", "conv.npz", "--max-drop", "90pt", "--json", "-")
    found = cli("prune", "conv.pt", *ARCH, "--target-macs", "0.8", *same, "-o", "out", *QUICK)
    assert any("fitted to" in note for note in json.loads(found.out)["notes"])
