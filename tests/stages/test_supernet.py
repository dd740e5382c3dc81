"""distill.supernet and prune.subnet: trained once, cut many times; bundles that load again, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.model import Model
from compresskit.ops.prune.elastic import ElasticSettings, Subnet, again
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stage import Context
from compresskit.stages.batches import calibration_data
from compresskit.stages.prune_subnet import elastic_of

ARCH = f"{Path(__file__).parents[2] / 'examples' / 'cifar_resnet.py'}:ResNet"
NET = {"blocks": 3, "width": 8, "classes": 4}
TRAINING = {"epochs": 2, "batch_size": 16, "round_to": 4, "augment": "none", "lr": 0.01}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet of random weights, and pictures; ``super`` in it is the supernet's bundle."""
    folder = tmp_path_factory.mktemp("supernet")
    spec = importlib.util.spec_from_file_location("cifar_resnet", ARCH.removesuffix(":ResNet"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    torch.save(module.ResNet(**NET).state_dict(), folder / "net.pt")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(48, 3, 16, 16)).astype("float32"), generator.integers(0, 4, 48)
    np.savez(folder / "data.npz", x=x, y=y)
    model = load(folder / "net.pt", arch=ARCH, arch_args=NET, input_shape=(1, 3, 16, 16))
    stage = method("distill.supernet", **TRAINING)
    run(model, [stage], folder / "super", data=data_of(folder), bench=False, export=False)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a small BERT: ``super`` was trained on unlabelled texts."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4, vocab_size=40,
        max_position_embeddings=128,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "in")
    ids = np.random.default_rng(0).integers(0, 40, (32, 12))
    np.savez(folder / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    stage = method("distill.supernet", epochs=2, batch_size=8)
    run(load(folder / "in"), [stage], folder / "super", data=data_of(folder), bench=False, export=False)
    return folder


def data_of(folder: Path) -> Any:
    return open_source(str(folder / "data.npz"))


def supernet(folder: Path) -> Model:
    return load(folder / "super", arch=ARCH, arch_args=NET)


def output(module: nn.Module, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.from_numpy(np.load(folder / "data.npz")["x"][:8]))


def test_a_supernet_is_of_its_originals_architecture(made: Path) -> None:
    original = torch.load(made / "net.pt")
    found = supernet(made)
    state = found.module.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in original.items()}
    assert not torch.equal(state["linear.weight"], original["linear.weight"])
    facts = found.card.history[-1].facts
    assert len(facts["elastic"]["order"]) == 12 and len(facts["elastic"]["blocks"]) == 3
    assert facts["teacher"]["model"].endswith("net.pt") and len(facts["training"]["curve"]) == 2
    assert all(p.requires_grad for p in found.module.parameters())


@pytest.mark.parametrize(("width", "drop"), [(0.5, 3), (0.25, 0), (1.0, 1), (None, 2), (0.7, None)])
def test_a_subnet_is_what_was_trained_and_comes_back_from_its_bundle(
    made: Path, tmp_path: Path, width: float | None, drop: int | None
) -> None:
    whole, stage = supernet(made), method("prune.subnet", width=width, drop=drop)
    ctx = Context(tmp_path, data_of(made))
    data = calibration_data(whole, ctx, samples=48, size=64, rows=2, by_length=False)
    small = stage.run(replace(whole, body=copy.deepcopy(whole.body)), ctx)
    facts = small.card.history[-1].facts
    assert facts["recalibrated"] == sum(isinstance(m, nn.BatchNorm2d) for m in small.module.modules())
    assert facts["share"]["params"] < 1

    from compresskit.ops.batchnorm import recalibrate
    from compresskit.ops.prune.rewrite import rewrite_shortcuts

    rewrite_shortcuts(whole.module, data.run)
    parts = again(whole.module, data, elastic_of(whole.card), ElasticSettings())
    with parts.only(whole.module, Subnet(width or 1.0, drop or 0)):
        recalibrate(whole.module, data.forward, data.batches)
        torch.testing.assert_close(output(small.module, made), output(whole.module, made), rtol=1e-5, atol=1e-6)

    exports = width == 0.5
    report = run(supernet(made), [stage], tmp_path / "out", data=data_of(made), bench=False, export=exports)
    assert report.models[1].parameters < report.models[0].parameters
    loaded = load(tmp_path / "out", arch=ARCH, arch_args=NET).module
    torch.testing.assert_close(output(loaded, made), output(small.module, made), rtol=0, atol=0)
    if exports:
        from compresskit.runtimes.onnxruntime import OnnxRuntime

        x = np.load(made / "data.npz")["x"][:8]
        found = OnnxRuntime(exact=True).open(tmp_path / "out" / "model.onnx", 1).run({"x": x})
        np.testing.assert_allclose(next(iter(found.values())), output(loaded, made).numpy(), rtol=0, atol=1e-5)


def test_a_subnet_may_compute_more_than_its_supernet(made: Path, tmp_path: Path) -> None:
    """Nothing is gone at such a width, and shortcuts have become convolutions."""
    step = method("prune.subnet", width=0.99)
    run(supernet(made), [step], tmp_path / "out", data=data_of(made), bench=False, export=False)
    loaded = load(tmp_path / "out", arch=ARCH, arch_args=NET)
    assert loaded.card.history[-1].facts["share"]["macs"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no subnet is given"),
        ({"width": 0.2}, r"`width` 0.2: the narrowest that was trained is 0.25"),
        ({"drop": 4}, r"`drop` 4: at most 3 blocks were left out in training"),
    ],
)
def test_a_subnet_that_was_not_trained_is_refused(
    made: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        method("prune.subnet", **options).run(supernet(made), Context(tmp_path, data_of(made)))


def test_statistics_of_the_whole_are_not_a_parts(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the statistics of batch normalization are another part's"):
        method("prune.subnet", width=0.5).run(supernet(made), Context(tmp_path))


def test_only_a_supernet_has_subnets(made: Path, tmp_path: Path) -> None:
    ctx, stage = Context(tmp_path, data_of(made)), method("prune.subnet", width=0.5)
    plain = load(made / "net.pt", arch=ARCH, arch_args=NET, input_shape=(1, 3, 16, 16))
    with pytest.raises(UsageError, match="the model is not a supernet") as raised:
        stage.run(plain, ctx)
    assert "`method` supernet" in str(raised.value.hint)
    once = stage.run(supernet(made), ctx)
    with pytest.raises(UsageError, match=r"prune\.subnet has changed the supernet"):
        stage.run(once, ctx)


def test_a_changed_card_is_refused(made: Path, tmp_path: Path) -> None:
    model = supernet(made)
    last = copy.deepcopy(model.card.history[-1])
    order = last.facts["elastic"]["order"]
    order["conv1"][0] = order["conv1"][1]
    model = replace(model, card=replace(model.card, history=(last,)))
    with pytest.raises(InputError, match=r"the card's distill\.supernet: elastic: it: .*the order of 'conv1'"):
        method("prune.subnet", width=0.5).run(model, Context(tmp_path, data_of(made)))


@pytest.mark.filterwarnings("ignore")  # those of transformers are not ours to mend
@pytest.mark.parametrize(("width", "drop", "sizes"), [(0.5, 1, (32, 3)), (0.3, 0, (24, 4)), (1.0, 2, (64, 2))])
def test_a_subnet_of_an_encoder_is_a_folder_that_transformers_loads(
    encoder: Path, tmp_path: Path, width: float, drop: int, sizes: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers")
    ids = np.load(encoder / "data.npz")["input_ids"]
    given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
    whole = load(encoder / "super")
    data = calibration_data(whole, Context(tmp_path), samples=8, size=8, rows=2)
    parts = again(whole.module, data, elastic_of(whole.card), ElasticSettings(transformer=True))
    with torch.no_grad(), parts.only(whole.module, Subnet(width, drop)):
        wanted = whole.module(**given)[0]
    stage = method("prune.subnet", width=width, drop=drop)
    run(load(encoder / "super"), [stage], tmp_path / "out", bench=False, export=False)
    for module in (transformers.AutoModel.from_pretrained(tmp_path / "out"), load(tmp_path / "out").module):
        assert (module.config.intermediate_size, module.config.num_hidden_layers) == sizes
        with torch.no_grad():
            torch.testing.assert_close(module.eval()(**given)[0], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_heads_go_where_they_were_trained_to(encoder: Path, tmp_path: Path) -> None:
    ids = torch.from_numpy(np.load(encoder / "data.npz")["input_ids"])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    stage = method("distill.supernet", epochs=1, batch_size=8, heads=True, min_width=0.5)
    run(load(encoder / "in"), [stage], tmp_path / "super", data=data_of(encoder), bench=False, export=False)
    whole = load(tmp_path / "super")
    data = calibration_data(whole, Context(tmp_path), samples=8, size=8, rows=2)
    parts = again(whole.module, data, elastic_of(whole.card), ElasticSettings(transformer=True))
    with torch.no_grad(), parts.only(whole.module, Subnet(0.5, 2)):
        wanted = whole.module(**given)[0]
    report = run(whole, [method("prune.subnet", width=0.5, drop=2)], tmp_path / "out", bench=False)
    assert any("transformers alone cannot" in note for note in report.notes)
    found = load(tmp_path / "out").module
    query = found.get_submodule("encoder.layer.1.attention.self.query")
    assert isinstance(query, nn.Linear) and query.out_features == 16
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(**given)[0], wanted, rtol=1e-6, atol=1e-6)
