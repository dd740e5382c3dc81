"""adaround and qat as stages: what they record, what a card's facts rebuild, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.checkpoint.tensors import open_tensors
from compresskit.cli.stages import make, stage_command
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.exporter.checked import export_checked
from compresskit.facts import read_facts
from compresskit.model import Card, InputSpec, Model
from compresskit.ops.packed.modules import PackedLayer
from compresskit.runner.weights import write_weights
from compresskit.stage import Context, Stage
from compresskit.stages.quantize_adaround import QuantizeAdaround
from compresskit.stages.quantize_qat import QuantizeQat

INPUTS = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)
QUICK = {
    "adaround": {"steps": 4, "samples": 64, "bits": 3},
    "qat": {"epochs": 1, "batch_size": 32, "bits": 3},
}
KINDS = {"adaround": QuantizeAdaround, "qat": QuantizeQat}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    def make_context(
        count: int = 128, *, labels: bool = True, shape: tuple[int, ...] = (3, 8, 8), add: float = 0
    ) -> Context:
        rng = np.random.default_rng(0)
        arrays = {"x": rng.normal(size=(count, *shape)).astype(np.float32) + np.float32(add)}
        if labels:
            arrays["y"] = rng.integers(0, 4, count)
        np.savez(tmp_path / "data.npz", **arrays)
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        return Context(work, open_source(str(tmp_path / "data.npz"), inputs=INPUTS))

    return make_context


def run(stage: Stage, ctx: Context) -> Model:
    return stage.run(Model(fresh(), Card("torch", inputs=INPUTS), Path("net.pt")), ctx)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_facts_and_the_tensors_rebuild_the_module(
    name: str, context: Callable[..., Context], tmp_path: Path
) -> None:
    model = run(KINDS[name](**QUICK[name]), context())
    applied = model.card.history[-1]
    assert applied.name == f"quantize.{name}" and set(applied.facts["layers"]) == {
        "stem", "head", *(f"blocks.{i}.conv" for i in range(3)),
    }  # fmt: skip
    write_weights(model, tmp_path / "model.safetensors")
    again = fresh()
    KINDS[name].replay(
        again, read_facts(KINDS[name].facts, applied.facts), open_tensors(tmp_path / "model.safetensors")
    )
    again.load_state_dict({k: open_tensors(tmp_path / "model.safetensors").get(k) for k in again.state_dict()})
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.body(x))
    assert export_checked(model.body, INPUTS, tmp_path / "model.onnx").parity.passed


@pytest.mark.parametrize("name", list(KINDS))
def test_the_seed_gives_the_same_bytes(name: str, context: Callable[..., Context]) -> None:
    ctx = context()
    first, second = (run(KINDS[name](**QUICK[name]), ctx).body.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_edges_get_8_bits_below_4_when_they_weigh_little(context: Callable[..., Context]) -> None:
    ctx = context()

    def bits(**options: object) -> dict[str, int]:
        model = run(QuantizeAdaround(steps=1, samples=32, **options), ctx)
        return {name: fact["bits"] for name, fact in model.card.history[-1].facts["layers"].items()}

    assert bits(bits=3) == {"stem": 8, "head": 8, **{f"blocks.{i}.conv": 3 for i in range(3)}}
    assert set(bits(bits=4).values()) == {4}
    assert set(bits(bits=3, edge_bits=3).values()) == {3}
    assert bits(bits=3, layer_bits=("head=4",))["head"] == 4


@pytest.mark.parametrize(("exclude", "widened"), [((), ["first"]), (("first", "last"), []), (("stem",), [])])
def test_edges_that_are_tied_or_left_out_stay_as_they_were(
    exclude: tuple[str, ...], widened: list[str], context: Callable[..., Context]
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(192, 192) if "stem" in exclude else nn.Flatten()
            self.first, self.middle, self.last = (nn.Linear(192, 192) for _ in range(3))
            self.last.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.middle(self.first(self.stem(x.flatten(1))))))

    model = Model(Tied().eval(), Card("torch", inputs=INPUTS), Path("net.pt"))
    stage = QuantizeAdaround(steps=1, samples=32, bits=3, edge_bits=8, exclude=exclude)
    facts = stage.run(model, context()).card.history[-1].facts
    wide = [name for name, data in facts["layers"].items() if data["bits"] == 8 and name not in facts["ties"]]
    notes = [note for note in facts["notes"] if note.startswith("first and last")]
    # With a stem the first layer is left out, and the last one follows another.
    assert wide == widened and len(notes) == len(widened)
    assert all("first" in note.split(":")[1] and "last" not in note.split(":")[1] for note in notes)


def test_qat_trains_a_layer_with_two_names_once(context: Callable[..., Context]) -> None:
    module = fresh()
    module.also = module.head
    model = Model(module, Card("torch", inputs=INPUTS), Path("net.pt"))
    done = QuantizeQat(**QUICK["qat"]).run(model, context())
    assert done.card.history[-1].facts["ties"] == {"also": "head"}
    assert torch.equal(done.body.also.packed.codes, done.body.head.packed.codes)


def test_options_of_adaround_are_told(context: Callable[..., Context]) -> None:
    seen: list[str] = []
    ctx = context()
    ctx = Context(ctx.work, ctx.data, progress=lambda what, _done, _total: seen.append(what))
    model = run(QuantizeAdaround(steps=1, samples=32, bits=3, equalize=True, recalibrate=True), ctx)
    notes = " ".join(model.card.history[-1].facts["notes"])
    assert "calibrated on 32 samples" in notes
    assert "8 bit: 'stem', 'head'" in notes or "8 bit: stem, head" in notes
    assert "3 batch normalizations" in notes
    assert "reconstruct blocks.1" in seen


def test_qat_learns_without_labels_and_says_so(context: Callable[..., Context]) -> None:
    model = run(QuantizeQat(**QUICK["qat"]), context(labels=False))
    assert "without labels" in model.card.history[-1].facts["notes"][0]
    assert isinstance(model.body.get_submodule("head"), PackedLayer)


def test_qat_with_8_bit_activations_gives_a_static_int8_file(context: Callable[..., Context]) -> None:
    model = run(QuantizeQat(epochs=1, batch_size=32, bits=8, activations=8), context())
    assert isinstance(model.body, Path) and model.body.suffix == ".onnx"
    applied = model.card.history[-1]
    assert applied.name == "quantize.qat" and len(model.card.history) == 1
    assert {fact["bits"] for fact in applied.facts["layers"].values()} == {8}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("qat", {"activations": 8}, "--activations 8: expected --bits 8"),
        ("qat", {"activations": 8, "bits": 8, "include": ("a",)}, "expected no --include"),
        ("qat", {"target": "gpu"}, "--target gpu: expected --activations 8"),
        ("qat", {"repair": 4}, "--repair 4"),
        ("adaround", {"repair": 4}, "--repair 4"),
        ("adaround", {"steps": 0}, "--steps 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict, said: str) -> None:
    with pytest.raises(UsageError) as found:
        make(KINDS[name], options)
    assert said in found.value.message


@pytest.mark.parametrize("name", list(KINDS))
def test_bad_data_are_refused(name: str, context: Callable[..., Context]) -> None:
    stage = KINDS[name](**QUICK[name])
    ctx = context()
    with pytest.raises(UsageError, match="`data`"):
        run(stage, Context(ctx.work))
    with pytest.raises(InputError, match="samples of shape"):
        context(shape=(3, 8, 9))
    with pytest.raises(InputError, match="NaN or Inf"):
        context(add=np.nan)


def test_one_sample_calibrates_but_does_not_train(context: Callable[..., Context]) -> None:
    ctx = context(1)
    assert "one calibration sample" in " ".join(run(QuantizeAdaround(steps=1), ctx).card.history[-1].facts["notes"])
    with pytest.raises(InputError, match="two samples"):
        run(QuantizeQat(epochs=1), ctx)


def test_the_flag_qat_means_the_method() -> None:
    assert "Method qat." in (stage_command("quantize", ["--qat"]).__doc__ or "")
    with pytest.raises(UsageError, match="--qat means"):
        stage_command("quantize", ["--qat", "--method", "gptq"])
