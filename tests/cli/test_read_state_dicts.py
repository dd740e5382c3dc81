"""What commands say of a file that holds more than one model's weights, and what they count as its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_material import ARCH, SHAPE, Cli


def report(cli: Cli, *arguments: object) -> Any:
    found = cli("quantize", *arguments, "--bits", "4", "--json", "-", "--force", "-o", "out")
    assert found.code == 0, found.err
    return json.loads(found.out)


@pytest.fixture
def saved(here: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(here / "m.safetensors")


@pytest.mark.parametrize("known", [(), (*ARCH, *SHAPE, "--no-export")])
def test_sizes_are_of_the_weights_and_the_optimizer_is_named(
    cli: Cli, saved: dict[str, torch.Tensor], known: tuple[str, ...]
) -> None:
    state = {"state": {0: {"m": torch.zeros(100_000)}}}
    torch.save({"model": saved, "optimizer": state}, "trained.pt")
    found = report(cli, "trained.pt", *known)
    weights = sum(value.nbytes for value in saved.values())
    assert found["models"][0]["bytes"] == weights
    assert any("'optimizer'" in note for note in found["notes"])


def test_the_key_chooses_and_the_report_says_which(cli: Cli, saved: dict[str, torch.Tensor]) -> None:
    other = {name: torch.zeros_like(value) for name, value in saved.items()}
    torch.save({"params": other, "params_ema": saved}, "two.pt")
    assert any("'params'" in note and "params_ema" in note for note in report(cli, "two.pt")["notes"])
    zeros = Path("out/model.safetensors").read_bytes()
    report(cli, "m.pt")
    wanted = Path("out/model.safetensors").read_bytes()
    report(cli, "two.pt", "--key", "params_ema")
    assert Path("out/model.safetensors").read_bytes() != zeros
    from safetensors.torch import load

    chosen = load(Path("out/model.safetensors").read_bytes())
    assert all(torch.equal(value, chosen[name]) for name, value in load(wanted).items())
    inspected = json.loads(cli("inspect", "two.pt", "--key", "params", "--json", "-").out)
    assert all(layer["sparsity"] == 1 for layer in inspected["layers"] if layer.get("sparsity") is not None)
    cli("inspect", "two.pt", "--key", "none").refused(2, "'params_ema'")
    Path("r.yaml").write_text(
        "model: two.pt\nkey: params_ema\narch: net.py:Net\ninput-shape: 1,32\nsteps:\n  - quantize.rtn: {bits: 8}\n"
    )
    found = cli("run", "r.yaml", "-o", "made", "--no-bench", "--json", "-", "--allow-code")
    assert found.code in (0, 1) and any("under 'params_ema'" in note for note in json.loads(found.out)["notes"])
