"""What methods would save is what they save: counted against what is known of small models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_structure import samples, silent
from test_substitute_tokens import Vit, calls, vit
from torch import nn

from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.savings import Inputs, products, savings

PICTURES = Inputs(texts=False, free=False)


def long(pixels: int) -> tuple[Vit, CalibrationData]:
    """Tokens of 4 × 4 pixels and two of the model's own."""
    module, data = vit()
    x = torch.randn(4, 3, pixels, pixels)
    return module, replace(data, example={"x": x[:2]}, batches=[{"x": x}])


def counted(module: nn.Module, data: CalibrationData) -> dict[str, Any]:
    return savings(module, data, PICTURES, 0, silent)


def test_products_of_attention_are_counted_with_the_others() -> None:
    module, data = long(24)
    tokens, width, hidden = 38, 16, 32
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert products(module, data) == 2 * (36 * 48 * width + 3 * block + width * 5)

    class ByHand(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ x.mT) @ x

    other = CalibrationData({"x": torch.randn(2, 7, 5)}, (), calls)
    assert products(ByHand(), other) == 2 * 2 * 7 * 7 * 5


def test_tokens_and_attention_save_more_of_longer_inputs() -> None:
    found = {pixels: counted(*long(pixels)) for pixels in (24, 96)}
    assert [f["tokens"]["tokens"] for f in found.values()] == [38, 578]
    assert [f["tokens"]["options"] for f in found.values()] == [["--tokens", "2"], ["--tokens", "36"]]
    assert 0 < found[24]["tokens"]["products"] < found[96]["tokens"]["products"] < 0.5
    windows = [f["attention"] for f in found.values()]
    assert [w["from"] for w in windows] == [274, 274] and windows[0]["products"] < 0 < windows[1]["products"]
    assert found[24]["fold"] is None and found[24]["units"] is None


@pytest.mark.parametrize("tokens", [192, 225, 257, 271, 272, 400])
def test_windows_take_fewer_products_from_the_number_that_is_told(tokens: int) -> None:
    """Queries are filled up to whole pairs of windows of 64, and each hears 192 keys."""
    x = torch.randn(2, tokens, 16)
    found = counted(nn.Sequential(vit()[0].blocks[0]), CalibrationData({"x": x}, [{"x": x}], calls))["attention"]
    filled = -(-tokens // 128) * 128
    assert (found["products"] > 0) == (filled * 192 < tokens * tokens)
    assert found["from"] == 272 and (found["products"] > 0 or tokens < 272)


def test_units_and_merged_layers_save_what_they_take() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        net[1].bias[:8] = -1e3  # type: ignore[index, union-attr]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = counted(net, samples(8))
    assert found["fold"] == {"layers": 1, "macs": 0.0, "parameters": round(64 / (8 * 32 + 32 + 64 + 33 * 4), 4)}
    assert found["units"] == {
        "never": 8, "always": 0, "macs": 0.25, "parameters": round(8 * (8 + 1 + 4) / (9 * 32 + 33 * 4), 4)
    }  # fmt: skip
    assert found["tokens"] is None and found["attention"] is None and found["tie"] is None
    twins = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    twins[2].load_state_dict(twins[0].state_dict())
    assert counted(twins, samples(8))["tie"] == {"layers": 1, "least": 0.95, "parameters": round(72 / 162, 4)}
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
