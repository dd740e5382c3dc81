"""Models made symmetric: by averages over moves of the picture, and by symmetric kernels."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec
from compresskit.ops.share.averaged import attach, refused
from compresskit.ops.share.kernels import kernels, parting, project
from compresskit.ops.share.moves import GROUPS, QUARTER
from compresskit.ops.shrinking import CalibrationData

SPEC = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)
SQUARE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """A classifier and a picture, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        seen = torch.relu(self.stem(x))
        return {"logits": scale * self.head(seen.amax((2, 3))), "picture": seen}


def flat() -> nn.Module:
    """Convolutions, windows and a Linear layer that reads a whole picture."""
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, 1, 1, groups=3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5))


def made(build: Any) -> Any:
    torch.manual_seed(0)
    return build().eval()


def data(x: Tensor = SQUARE) -> CalibrationData:
    return CalibrationData({"x": x}, [{"x": x}], lambda module, batch: module(batch["x"]))


@pytest.mark.parametrize("group", GROUPS)
def test_moves_are_groups(group: str) -> None:
    moves = GROUPS[group]
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    all_ = [move(x) for move in moves]
    assert torch.equal(all_[0], x) and all(torch.equal(move.undo(move(x)), x) for move in moves)
    for one, two in product(moves, moves):
        assert sum(torch.equal(one(two(x)), known) for known in all_) == 1
    assert torch.equal(QUARTER(x), x.rot90(1, (-2, -1)))


@pytest.mark.parametrize("group", GROUPS)
@torch.no_grad()
def test_averaged_vectors_stay_and_averaged_pictures_move(group: str) -> None:
    module = made(Named)
    names = list(module.state_dict())
    before = module(SQUARE, scale=2.0)
    attach(module, group)
    plain = module(SQUARE, scale=2.0)
    assert list(module.state_dict()) == names and plain["logits"].shape == before["logits"].shape
    for move in GROUPS[group]:
        moved = module(move(SQUARE), scale=2.0)
        assert torch.allclose(moved["logits"], plain["logits"], atol=1e-5)
        assert torch.allclose(moved["picture"], move(plain["picture"]), atol=1e-5)
    assert not torch.allclose(plain["picture"], before["picture"], atol=1e-2)
    with pytest.raises(InputError, match=f"averaged over {group} already"):
        attach(module, group)


@pytest.mark.parametrize("group", GROUPS)
@torch.no_grad()
def test_symmetric_kernels_cost_nothing_and_change_nothing_twice(group: str) -> None:
    module, moves = made(flat), GROUPS[group]
    shapes = kernels(module, data())
    assert shapes == {"0": (6, 3, 3, 3), "3": (6, 2, 3, 3), "6": (5, 6, 4, 4)}
    assert parting(module, data(), moves[1:]).startswith("'0' (Conv2d) gives something else after a")
    kept = project(module, shapes, moves)
    assert all(0 < share < 1 for share in kept.values()) and not parting(module, data(), moves[1:])
    plain = module(SQUARE)
    for move in moves:
        assert torch.allclose(module(move(SQUARE)), plain, atol=1e-5)
    same = copy.deepcopy(module.state_dict())
    assert all(share == pytest.approx(1) for share in project(module, shapes, moves).values())
    assert all(torch.allclose(tensor, same[name], atol=1e-7) for name, tensor in module.state_dict().items())
    attach(module, group)  # what is symmetric already is its own average
    assert torch.allclose(module(SQUARE), plain, atol=1e-5)


def test_a_stride_that_reads_other_pixels_is_named() -> None:
    module = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    project(module, kernels(module, data()), GROUPS["flip"])
    why = parting(module, data(), GROUPS["flip"][1:])
    assert (
        why == "'0' (Conv2d) gives something else after a flip left-right: with stride 2 it reads other pixels of a "
        "turned picture; its input of 8 × 8 would have to be 9 × 9"
    )
    odd = data(torch.randn(2, 3, 9, 9))
    assert not parting(module, odd, GROUPS["flip"][1:])


@pytest.mark.parametrize(
    ("out", "why"),
    [
        (torch.zeros(4, 7, 5), "an output of 4 × 7 × 5 is neither a vector"),
        (torch.zeros(3, 5), "no row for each of 4 samples"),
        (torch.zeros(4, 1, 2, 3), "no square picture"),
        ({"a": torch.zeros(4, 5), "b": torch.zeros(4, 5, dtype=torch.int64)}, "an output of 4 × 5 is neither"),
        ((torch.zeros(4, 5), torch.zeros(4, 1, 2, 2)), ""),
    ],
)
def test_outputs_that_cannot_be_averaged_are_named(out: Any, why: str) -> None:
    found = refused(out, 4, square=True)
    assert why in found and bool(why) == bool(found)


@pytest.mark.parametrize("build", [Named, flat])
def test_averages_in_onnx_are_plain_operators(tmp_path: Path, build: Any) -> None:
    import onnx

    module = made(build)
    attach(module, "d4")
    export_onnx(module, SPEC, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", SPEC).passed
    used = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Transpose" in used and not used & {"GridSample", "ScatterND", "Loop", "If"}
    assert sum(node.op_type == "Conv" for node in onnx.load(tmp_path / "m.onnx").graph.node) == (
        1 if build is Named else 2
    )
