"""What ``auto`` picks, and that what it says is what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.data.opening import open_source
from compresskit.data.source import Source
from compresskit.errors import InputError, UsageError
from compresskit.model import Card, InputSpec, Model
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stage import Context


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(self.first(x)).mean((2, 3)))
        return out


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x)
        return out


def model_of(module: nn.Module, shape: tuple[int, ...], folder: Path) -> Model:
    spec = InputSpec("x", "float32", ("batch", *shape))
    source = folder / "net.pt"
    torch.save(module.state_dict(), source)
    return Model(module, Card("torch", inputs=(spec,), task="classification"), source)


MODELS = {"convolutions": (Convs, (3, 8, 8)), "linear": (Linears, (64,))}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sample(kind: str, folder: Path, count: int = 96, labelled: bool = True) -> tuple[Model, Source]:
    make, shape = MODELS[kind]
    model = model_of(make().eval(), shape, folder)
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    with torch.no_grad():
        y = model.body(torch.from_numpy(x)).argmax(1).numpy()  # type: ignore[operator]
    path = folder / "data.npz"
    np.savez(path, x=x, **({"y": y} if labelled else {}))
    return model, open_source(str(path), inputs=model.card.inputs)


def chosen(
    model: Model, data: Source | None, tmp_path: Path, *, ctx: dict[str, Any] | None = None, **options: Any
) -> Any:
    return method("quantize.auto", **options).choose(model, Context(tmp_path, data, **(ctx or {})))


EXPECTED = {
    ("convolutions", 4, True): "quantize.adaround",
    ("convolutions", 8, True): "quantize.int8-static",
    ("linear", 4, True): "quantize.gptq",
    ("linear", 8, True): "quantize.smoothquant",
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_data", [True, False])
def test_method_by_model_bits_and_data(kind: str, bits: int, with_data: bool, tmp_path: Path) -> None:
    model, data = sample(kind, tmp_path)
    found = chosen(model, data if with_data else None, tmp_path, bits=bits)
    assert [s.name() for s in found.stages] == [EXPECTED.get((kind, bits, with_data), "quantize.rtn")]
    assert found.notes[0].startswith(f"auto chose {found.stages[0].method}")


def test_fast_rounds_even_with_data(kind: str, tmp_path: Path) -> None:
    model, data = sample(kind, tmp_path)
    assert chosen(model, data, tmp_path, bits=3, preset="fast").stages[0].name() == "quantize.rtn"


def test_files_without_a_module(tmp_path: Path) -> None:
    onnx, tensors = (Model(Path(n), Card("onnx"), Path(n)) for n in ("m.onnx", "m.safetensors"))
    assert chosen(onnx, None, tmp_path).stages[0].name() == "quantize.int8-dynamic"
    assert chosen(tensors, None, tmp_path).stages[0].name() == "quantize.rtn"
    with pytest.raises(UsageError, match="is quantized to 8 bits"):
        chosen(onnx, None, tmp_path, bits=4)


def test_an_option_that_the_choice_lacks_is_refused(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    with pytest.raises(UsageError, match="`group_size`: smoothquant"):
        chosen(model, data, tmp_path, bits=8, group_size=64)
    with pytest.raises(UsageError, match="`samples`: rtn"):
        chosen(model, None, tmp_path, samples=3)


def test_it_tells_what_it_will_cost(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    said: list[str] = []
    chosen(model, data, tmp_path, ctx={"tell": said.append})
    assert len(said) == 1
    assert said[0].startswith("gptq on 96 samples: about")


@pytest.mark.parametrize("mean", [3.0, 3.7, 5.5])
def test_the_mean_is_kept_in_the_file(kind: str, mean: float, tmp_path: Path) -> None:
    model, _ = sample(kind, tmp_path)
    weights = sum(m.weight.numel() for m in model.body.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))  # type: ignore[union-attr]
    run(model, [method("quantize.auto", target_bits=mean)], tmp_path / "out", export=False)
    card = load(tmp_path / "out", shipped=True).card
    applied = card.history[-1]
    assert applied.name == "quantize.rtn"
    assert len({fact["bits"] for fact in applied.facts["layers"].values()}) > 1
    tensors = load_tensors(tmp_path / "out" / "model.safetensors")
    packed = sum(v.nbytes for k, v in tensors.items() if k.rpartition(".")[2] in ("codes", "scales", "zeros"))
    assert packed * 8 / weights <= mean


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def test_its_choice_given_by_hand_is_the_same_file(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    run(model, [method("quantize.auto", target_bits=4.2)], tmp_path / "auto", data=data, export=False)
    applied = load(tmp_path / "auto", shipped=True).card.history[-1]
    model, data = sample("linear", tmp_path)
    run(model, [method(applied.name, **applied.options)], tmp_path / "hand", data=data, export=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", "hand")]
    assert weights[0] == weights[1]


def test_a_quality_limit_is_checked_on_samples_that_calibration_leaves(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path, count=400)
    found = chosen(model, data, tmp_path, bits=2, ctx={"max_drop": "1%"})
    assert "held-out calibration data" in found.notes[-1]
    assert any("=" in text for text in found.stages[0].layer_bits)


def test_a_quality_limit_without_labels_is_said_to_guide_nothing(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path, labelled=False)
    found = chosen(model, data, tmp_path, bits=2, ctx={"max_drop": "1%"})
    assert "was not used for the choice" in found.notes[-1]


def test_a_size_that_no_bits_keep(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    found = chosen(model, data, tmp_path, ctx={"max_bytes": 1000})
    assert found.stages[0].layer_bits == ()
    assert "no choice of bits keeps the size" in found.notes[-1]
    with pytest.raises(InputError, match="2 bits take"):
        chosen(model, data, tmp_path, target_bits=2)


def test_data_of_a_shape_that_the_model_fails_on(tmp_path: Path) -> None:
    model, _ = sample("convolutions", tmp_path)
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=np.zeros((8, 1, 8, 8), np.float32))
    spec = InputSpec("x", "float32", ("batch", 1, 8, 8))
    model = Model(model.body, Card("torch", inputs=(spec,)), model.source)
    with pytest.raises(InputError, match=r"the model failed on calibration data of x \[8, 1, 8, 8\]"):
        chosen(model, open_source(str(wrong), inputs=(spec,)), tmp_path)


def test_data_that_nothing_reads_is_named(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    report = run(model, [method("quantize.rtn")], tmp_path / "out", data=data, export=False)
    assert any("data.npz was not used" in note for note in report.notes)


def test_a_quantized_bundle_is_not_quantized_again(tmp_path: Path) -> None:
    model, data = sample("linear", tmp_path)
    run(model, [method("quantize.rtn")], tmp_path / "out", bench=False)
    again = load(tmp_path / "out", shipped=True)
    with pytest.raises(UsageError, match=r"went through quantize\.rtn already"):
        run(again, [method("quantize.auto")], tmp_path / "again", data=data)
