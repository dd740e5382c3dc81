"""The MODEL argument in all its kinds, and tensors into modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from compresskit.checkpoint.atomic import new_folder
from compresskit.checkpoint.bundle import extras_of, is_bundle, read_card, seal, write_bundle
from compresskit.checkpoint.load import kind_of, load
from compresskit.checkpoint.load_state import load_into
from compresskit.checkpoint.safetensors_writer import entry
from compresskit.checkpoint.tensors import Tensors, open_tensors
from compresskit.errors import InputError, UsageError
from compresskit.model import Applied, Arch, Card, InputSpec

CODE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, width=4, tied=False):
        super().__init__()
        self.embed = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, width, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("position_ids", torch.arange(3), persistent=False)
    def forward(self, pixels, scale=1.0):
        return self.head(self.norm(self.embed(pixels)))
class Two(Net):
    def forward(self, a, b): return a + b
"""


@pytest.fixture
def arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return "net.py:Net"


def make(**options: Any) -> nn.Module:
    scope: dict[str, Any] = {"__name__": "net"}
    exec(CODE, scope)
    module = scope["Net"](**options)
    assert isinstance(module, nn.Module)
    return module


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_bare_state_dict_stays_on_disk(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"m.{form}"
    (torch.save if form == "pt" else save_file)(make().state_dict(), path)
    model = load(path)
    assert model.body == path == model.source
    assert model.card == Card("torch" if form == "pt" else "safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_an_architecture_gets_its_weights(tmp_path: Path, arch: str, prefix: str, dtype: torch.dtype) -> None:
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in make().state_dict().items()}
    torch.save({"state_dict": {prefix + n: v for n, v in state.items()}}, tmp_path / "m.pt")
    model = load(tmp_path / "m.pt", arch=str(tmp_path / arch), input_shape=(1, 4))
    assert isinstance(model.body, nn.Module) and not model.body.training
    for name, value in model.body.state_dict().items():
        assert value.dtype == make().state_dict()[name].dtype
        assert torch.equal(value, state[name].to(value.dtype))
    assert model.card.arch == Arch("python", arch, {}), "no absolute path is recorded"
    assert model.card.inputs == (InputSpec("pixels", "float32", ("batch", 4)),)
    assert torch.equal(model.body.position_ids, torch.arange(3))


def test_arguments_of_the_factory(tmp_path: Path, arch: str) -> None:
    torch.save(make(width=6).state_dict(), tmp_path / "m.pt")
    model = load("m.pt", arch=arch, arch_args={"width": 6})
    assert model.card.arch.args == {"width": 6} and model.card.inputs == ()
    with pytest.raises(InputError, match=r"'embed\.weight' is \[6, 6\], the architecture expects \[4, 4\]"):
        load("m.pt", arch=arch)


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("meta", [False, True])
def test_one_name_of_a_tied_weight_suffices(tmp_path: Path, kept: str, meta: bool) -> None:
    state = make(tied=True).state_dict()
    state.pop("head.weight" if kept == "embed.weight" else "embed.weight")
    torch.save(state, tmp_path / "m.pt")
    with torch.device("meta" if meta else "cpu"):
        module: Any = make(tied=True)
    load_into(module, open_tensors(tmp_path / "m.pt"))
    assert module.head.weight is module.embed.weight
    assert torch.equal(module.head.weight, state[kept])


def test_a_meta_module_takes_the_maps_tensors(tmp_path: Path) -> None:
    source = make()
    torch.save(source.state_dict(), tmp_path / "m.pt")
    with torch.device("meta"):
        module = make()
    load_into(module, open_tensors(tmp_path / "m.pt"))
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("embed.weight"), r"1 of 7 are missing: 'embed\.weight'"),
        (lambda s: s.update(extra=torch.ones(1)), "1 were not expected: 'extra'"),
        (
            lambda s: s.clear() or s.update(a=torch.ones(1)),
            "missing: 'embed.weight', .* and 3 more; 1 were not expected: 'a'",
        ),
        (lambda s: s.update({"embed.weight": torch.ones(4, 4, dtype=torch.int64)}), "is of int64, .* expects float32"),
        (lambda s: s.update({"norm.num_batches_tracked": torch.tensor(1.5)}), "is of float32, .* expects int64"),
        (lambda s: s.update({"norm.bias": torch.ones(5)}), r"'norm\.bias' is \[5\], the architecture expects \[4\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, arch: str, change: Any, said: str) -> None:
    state = make().state_dict()
    change(state)
    torch.save(dict(state), tmp_path / "m.pt")
    with pytest.raises(InputError, match=said):
        load("m.pt", arch=arch)


def test_old_checkpoints_without_counters_and_with_computed_buffers(tmp_path: Path, arch: str) -> None:
    state = dict(make().state_dict())
    del state["norm.num_batches_tracked"]
    state["position_ids"] = torch.arange(9)
    torch.save(state, tmp_path / "m.pt")
    assert isinstance(load("m.pt", arch=arch).body, nn.Module)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch_args": {"a": 1}}, "without `arch`"),
        ({"input_shape": (1, 4)}, "needs `arch`"),
        ({"arch": "net.py:Net", "input_shape": (0, 4)}, "sizes of 1 and more"),
        ({"arch": "net.py:Two", "input_shape": (1, 4)}, r"forward takes 2 inputs \(a, b\)"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, arch: str, options: dict[str, Any], said: str) -> None:
    torch.save(make().state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=said):
        load("m.pt", **options)


def test_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder without a model"):
        kind_of(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(tmp_path) == "huggingface"


def onnx_file(path: Path) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_onnx_and_its_options(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx")
    assert load(path, input_shape=(2, 4)).card.inputs == (InputSpec("x", "float32", ("batch", 4)),)
    with pytest.raises(UsageError, match="does not fit the model's input 'x'"):
        load(path, input_shape=(2, 5))
    with pytest.raises(UsageError, match="`arch` does not go with an ONNX file"):
        load(path, arch="net.py:Net")


STEP = Applied("quantize.rtn", {"bits": 8}, {"layers": ["fc"]}, {"norm": "no packed form"})
CARD = Card("torch", Arch("python", "net.py:Net", {"width": 4}), (InputSpec("pixels", "float32", ("batch", 4)),))


def bundle(tmp_path: Path, card: Card = CARD, *, onnx: bool = True) -> Path:
    graph = onnx_file(tmp_path / "source.onnx") if onnx else None
    with new_folder(tmp_path / "out", force=True) as staged:
        state = make().state_dict()
        write_bundle(staged, card, weights=[entry(n, t) for n, t in state.items()], onnx=graph)
        (staged / "report.json").write_text("{}")
    return tmp_path / "out"


def test_a_bundle_round_trips(tmp_path: Path) -> None:
    card = CARD.after(STEP)
    folder = bundle(tmp_path, card)
    assert is_bundle(folder) and read_card(folder) == card
    (folder / "report.json").write_text("{ }")
    model = load(folder)
    assert model.body == folder / "model.onnx" and model.source == folder
    assert model.card.format == "bundle" and model.card.history == card.history and model.card.arch == card.arch
    assert not any(str(tmp_path) in path.read_bytes().decode("latin1") for path in folder.iterdir())


def test_the_same_bundle_has_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = {p.name: p.read_bytes() for p in bundle(tmp_path).iterdir()}
    torch.manual_seed(0)
    assert first == {p.name: p.read_bytes() for p in bundle(tmp_path).iterdir()}


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_a_changed_file_is_named(tmp_path: Path, name: str, change: str) -> None:
    folder = bundle(tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    if change == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if change == "flip" else content[:-1])
    with pytest.raises(InputError, match=name):
        load(folder)


def test_a_model_file_off_the_record_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path, onnx=False)
    onnx_file(folder / "model.onnx")
    with pytest.raises(InputError, match="not on record"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "not a card"),
        ('{"version": 99}', "version 99"),
        ('{"version":1,"format":"torch","arch":{"kind":"none"},"inputs":[],"task":"x","history":[]}', "lists no files"),
        (
            '{"version":1,"format":"x","arch":{"kind":"none"},"inputs":[],"task":"x","history":[],"files":{"../x":{}}}',
            "not a path inside",
        ),
    ],
)
def test_a_damaged_card(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "compresskit.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load(tmp_path)


def test_a_bundle_that_needs_arch_names_the_one_on_record(tmp_path: Path) -> None:
    folder = bundle(tmp_path, onnx=False)
    with pytest.raises(UsageError, match="needs `arch`") as caught:
        load(folder)
    assert "`arch` net.py:Net" in caught.value.hint and "width" in caught.value.hint


def test_a_bundle_is_rebuilt_with_arch_and_replay(tmp_path: Path, arch: str) -> None:
    seen: list[tuple[Any, ...]] = []

    def replay(module: nn.Module, card: Card, tensors: Tensors) -> Tensors:
        seen.append((type(module).__name__, card.history, len(tensors)))
        return tensors

    folder = bundle(tmp_path, CARD.after(STEP))
    model = load(folder, arch=arch, replay=replay)
    assert seen == [("Net", (STEP,), 7)] and isinstance(model.body, nn.Module)
    want = open_tensors(folder / "model.safetensors")
    assert all(torch.equal(v, want.get(n)) for n, v in model.body.state_dict().items())
    with pytest.raises(UsageError, match="history"):
        load(folder, arch=arch)


def test_extras_go_along(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json", "private.txt"):
        (source / name).write_text("{}")
    with new_folder(tmp_path / "out") as staged:
        write_bundle(staged, Card("huggingface"), extras_from=source, extras=extras_of(source))
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"compresskit.json", "config.json", "tokenizer.json", "1_Pooling/config.json"}


def test_seal_covers_files_that_others_wrote(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as staged:
        (staged / "model.onnx.data").write_bytes(b"123")
        seal(staged, CARD)
    read_card(tmp_path / "out")
    (tmp_path / "out" / "model.onnx.data").write_bytes(b"124")
    with pytest.raises(InputError, match=r"model\.onnx\.data"):
        read_card(tmp_path / "out")
    assert read_card(tmp_path / "out", verify=False) == CARD
