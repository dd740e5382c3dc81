"""Exports of foreign models: they compute the same, stay as they were, and fail with a reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from export_models import IMAGE, Cnn, make
from torch import Tensor, nn

from compresskit.errors import InputError, MachineError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec
from compresskit.runtimes.onnxruntime import OnnxRuntime

OUTPUTS = {
    "bert": ("last_hidden_state", "pooler_output"),
    "cnn": ("output",),
    "LSTM": ("logits", "state"),
    "GRU": ("logits", "state"),
    "RNN": ("logits", "state"),
}


@pytest.mark.parametrize(
    "kind",
    [
        *("cnn", "bert", "GRU"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "vit", "gpt2", "LSTM", "RNN")),
    ],
)
def test_a_foreign_model_computes_the_same(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module, inputs = make(kind)
    capfd.readouterr()
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    exported = export_onnx(module, inputs, tmp_path / "m.onnx")
    proof = parity(module, tmp_path / "m.onnx", inputs, limits=exported.limits)
    assert proof.passed and proof.n >= 32, proof
    assert proof.rel_l2 < 3e-6
    assert exported.notes == (("axis 'sequence' goes up to 24",) if kind == "bert" else ())
    assert exported.outputs == OUTPUTS.get(kind, ("logits",))
    assert all(layer.training for layer in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    session = OnnxRuntime().open(tmp_path / "m.onnx")
    assert [s.name for s in session.inputs] == [s.name for s in inputs]
    assert [s.shape for s in session.inputs] == [s.shape for s in inputs]
    assert capfd.readouterr() == ("", "")


class Unrolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            state = torch.tanh(state + x[:, step])
        return state


def test_an_axis_that_the_code_depends_on_is_fixed_and_told(tmp_path: Path) -> None:
    inputs = (InputSpec("x", "float32", ("batch", "sequence", 4)),)
    exported = export_onnx(Unrolled(), inputs, tmp_path / "m.onnx", sizes={"sequence": 5})
    assert exported.notes == ("axis 'sequence' is fixed at 5: the model's code depends on its size",)
    assert OnnxRuntime().open(tmp_path / "m.onnx").inputs[0].shape == ("batch", 5, 4)
    assert parity(Unrolled(), tmp_path / "m.onnx", inputs, limits=exported.limits).passed


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Silent(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "nothing"


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (Branching(), IMAGE, "can't be exported"),
        (Silent(), IMAGE, "returns no tensor"),
        (
            nn.Linear(7, 2),
            (InputSpec("input", "float32", ("batch", 8)),),
            "failed when called with input float32 [2, 8]",
        ),
        (nn.Linear(7, 2), (InputSpec("input", "complexity", ("batch", 7)),), "'complexity'"),
        (nn.Linear(7, 2), (), "inputs"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(
    module: nn.Module, inputs: tuple[InputSpec, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        export_onnx(module, inputs, tmp_path / "m.onnx")
    assert words in caught.value.message and caught.value.hint
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())


def test_positional_inputs_when_forward_has_other_names(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    inputs = (InputSpec("features", "float32", ("any size", 4)),)
    export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs).passed


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError):
        export_onnx(nn.Linear(2, 2), (InputSpec("input", "float32", ("batch", 2)),), tmp_path / "no" / "m.onnx")


@pytest.mark.usefixtures("translated_anew")
def test_the_file_holds_no_trace_of_this_machine_and_is_the_same_every_time(tmp_path: Path) -> None:
    files = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for file in files:
        torch.manual_seed(1)
        export_onnx(Cnn(), IMAGE, file)
    data = files[0].read_bytes()
    assert data == files[1].read_bytes()
    for trace in (b"pkg.", b".py", b"torch", str(tmp_path).encode(), str(Path(torch.__file__).parent).encode()):
        assert trace not in data
    model = onnx.load(files[0])
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not model.graph.value_info and not model.metadata_props and not model.doc_string
    assert not any(node.metadata_props or node.doc_string or node.name for node in model.graph.node)


def test_weights_past_the_limit_go_to_one_file_beside_it(tmp_path: Path) -> None:
    module, inputs = nn.Linear(64, 64), (InputSpec("input", "float32", ("batch", 64)),)
    export_onnx(module, inputs, tmp_path / "m.onnx", data_above=1000)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert (tmp_path / "m.onnx.data").stat().st_size >= 64 * 64 * 4 > (tmp_path / "m.onnx").stat().st_size
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in ("m.onnx", "m.onnx.data"):
        (tmp_path / file).rename(moved / file)
    assert parity(module, moved / "m.onnx", inputs).passed
