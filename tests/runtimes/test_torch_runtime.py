from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec
from compresskit.runtimes import get
from compresskit.runtimes.torch import TorchRuntime, flatten

HERE = Path("model.pt")
ONE = torch.ones(1)
Pair = namedtuple("Pair", "first second")


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, a, b):
        return {"sum": self.drop(a * self.w + b), "difference": a - b}


def session(module, **options):
    return TorchRuntime(loader=lambda path: module, **options).open(HERE)


def test_inputs_go_by_name_in_any_order():
    a, b = np.full((2, 3), 5, np.float32), np.ones((2, 3), np.float32)
    opened = session(Sum().train(), inputs=(InputSpec("a", "float32", ("batch", 3)),))
    out = opened.run({"b": b, "a": a})
    np.testing.assert_array_equal(out["sum"], a + b)  # and dropout is off
    np.testing.assert_array_equal(out["difference"], a - b)
    assert opened.outputs == ("sum", "difference")
    assert opened.inputs[0].name == "a"


def test_an_input_of_another_name_goes_by_position():
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    x.flags.writeable = False  # torch warns of such arrays, and warnings are errors here
    out = session(nn.Sequential(nn.Identity())).run({"image": x})
    np.testing.assert_array_equal(out["output"], x)


def test_no_gradients_and_16_bit_results():
    class Half(nn.Linear):
        def forward(self, input):
            assert torch.is_inference_mode_enabled()
            return super().forward(input).bfloat16()

    assert session(Half(2, 2)).run({"input": np.ones((1, 2), np.float32)})["output"].dtype == np.float32


@pytest.mark.parametrize(
    ("out", "names"),
    [
        (ONE, ["output"]),
        ((ONE,), ["output"]),
        ([ONE, ONE], ["output_0", "output_1"]),
        (Pair(ONE, ONE), ["output_0", "output_1"]),
        ({"a": ONE, "n": None, "b": (ONE, ONE)}, ["a", "b_0", "b_1"]),
        ({"cache": {"k": ONE}}, ["cache.k"]),
        ((ONE, None, "text"), ["output_0"]),
    ],
)
def test_outputs_are_named(out, names):
    assert list(flatten(out)) == names


def test_model_outputs_are_named_by_their_keys():
    generic = pytest.importorskip("transformers.utils.generic")

    @dataclass
    class Output(generic.ModelOutput):
        logits: torch.Tensor | None = None
        loss: torch.Tensor | None = None

    assert list(flatten(Output(logits=ONE))) == ["logits"]


@pytest.mark.parametrize(
    ("module", "feeds", "message"),
    [
        (nn.Linear(3, 2), {"input": np.ones((1, 4), np.float32)}, r"model\.pt"),
        (Sum(), {"a": np.ones(3, np.float32)}, "missing"),
    ],
)
def test_a_module_that_refuses_its_inputs(module, feeds, message):
    with pytest.raises(InputError, match=message) as caught:
        session(module).run(feeds)
    assert "\n" not in caught.value.message


def test_a_module_that_gives_no_tensor():
    class Nothing(nn.Module):
        def forward(self, x):
            return "text"

    with pytest.raises(InputError, match="str"):
        session(Nothing()).run({"x": np.ones(1, np.float32)})


def test_what_a_loader_raises():
    def broken(path):
        raise KeyError("layer\x1b[31m")

    def told(path):
        raise MachineError("no memory")

    with pytest.raises(InputError, match="cannot load") as caught:
        TorchRuntime(loader=broken).open(HERE)
    assert caught.value.message.isprintable()
    with pytest.raises(MachineError, match="no memory"):
        TorchRuntime(loader=told).open(HERE)
    with pytest.raises(UsageError, match="how to build"):
        get("torch").open(HERE)


@pytest.mark.parametrize(("device", "kind"), [("abacus", UsageError), ("xpu", MachineError)])
def test_devices(device, kind):
    with pytest.raises(kind, match=device):
        TorchRuntime(loader=lambda path: nn.Identity()).open(HERE, device=device)


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        TorchRuntime(loader=lambda path: nn.Identity()).open(HERE, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
