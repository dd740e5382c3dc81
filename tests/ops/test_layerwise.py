"""Where two models part: a layer that was changed is found, in modules and in ONNX files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compresskit.exporter.checked import export_checked
from compresskit.model import InputSpec
from compresskit.ops.layerwise.onnx_side import OnnxSide
from compresskit.ops.layerwise.parting import parting
from compresskit.ops.layerwise.side import Side, TorchSide

INPUTS = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.mid, self.mid_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.scale, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.mid_norm(self.mid(x)) + x).mean((2, 3))
        return self.down(self.scale(torch.relu(self.up(x))))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    made = Net()
    for part in (made.norm, made.mid_norm):
        nn.init.uniform_(part.weight, 0.5, 2)
        nn.init.normal_(part.bias)
        nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made.eval()


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "net.onnx"
    export_checked(net, INPUTS, path)
    return path


def forward(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(*batch.values())


def batches() -> list[dict[str, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, 3, 8, 8, generator=made)} for _ in range(2)]


def side(module: nn.Module) -> Side:
    return TorchSide(module, forward, batches()[0])


def compared(one: Side, two: Side) -> dict[str, Any]:
    return parting(one, two, batches(), lambda what, done, total: None)


def test_a_file_agrees_with_its_module_in_every_layer(net: nn.Module, exported: Path, tmp_path: Path) -> None:
    found = compared(side(net), OnnxSide(exported, tmp_path))
    assert [row["name"] for row in found["layers"]] == ["first", "mid", "up", "scale", "down"]
    assert max(row["error"] for row in found["layers"]) < 1e-5 and found["output"] < 1e-5
    assert found["first"] is None and found["one"] == found["two"] == found["shapes"] == []


def changed_module(net: nn.Module, layer: str) -> nn.Module:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_submodule(layer).get_parameter("weight").mul_(1.1)
    return other


@pytest.mark.parametrize("layer", ["first", "mid", "up", "scale", "down"])
def test_the_changed_layer_of_a_module_is_named(net: nn.Module, layer: str) -> None:
    found = compared(side(net), side(changed_module(net, layer)))
    assert found["first"] == layer
    before = [row["error"] for row in found["layers"][: [row["name"] for row in found["layers"]].index(layer)]]
    assert all(error == 0 for error in before) and found["output"] > 1e-3


@pytest.mark.parametrize("layer", ["mid", "down"])
def test_the_changed_layer_of_a_file_is_named(net: nn.Module, exported: Path, tmp_path: Path, layer: str) -> None:
    model = onnx.load(exported)
    (tensor,) = [one for one in model.graph.initializer if one.name == f"{layer}.weight"]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor) * 1.1), tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    sides: dict[str, Callable[[], Side]] = {
        "module": lambda: side(net), "file": lambda: OnnxSide(exported, _made(tmp_path / "one"))
    }  # fmt: skip
    for make in sides.values():
        assert compared(make(), OnnxSide(tmp_path / "other.onnx", _made(tmp_path / "two")))["first"] == layer


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_layers_of_other_names_or_shapes_are_told(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    other.up, other.scale, other.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4)
    other.mid_norm = nn.Identity()
    found = compared(side(net), side(other))
    assert found["shapes"] == ["up", "scale"] and found["one"] == ["mid_norm"] and found["two"] == []
    assert found["first"] == "down"


def _node(name: str = "", scopes: str = "") -> Any:
    made = onnx.helper.make_node("Conv", ["v1", "onnx::Conv_7"], ["v2"], name=name)
    if scopes:
        made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return made


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        (_node("/layer1/layer1.0/conv1/Conv"), "layer1.0.conv1"),
        (_node("/conv1/Conv"), "conv1"),
        (_node(scopes="['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']"), "layer1.0.conv1"),
    ],
)
def test_names_of_other_exporters_are_read(node: Any, layer: str) -> None:
    from compresskit.ops.layerwise.onnx_side import layers_of

    weight = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "onnx::Conv_7")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [weight]))
    assert list(layers_of(model)) == [layer]
