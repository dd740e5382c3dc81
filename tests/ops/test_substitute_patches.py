"""Larger patches: an enlarged patch is embedded as the patch was, and the model around follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_substitute_tokens import by_name, calls
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.facts.substitute import PatchesFacts, PatchFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.patches import (
    Patches,
    check,
    find,
    replay,
    resample,
    resampled,
    resized_positions,
    resized_weight,
)


class Net(nn.Module):
    """One class token, positions and two layers; ``each`` gives the mean of the tokens, or all of them."""

    def __init__(self, *, each: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.patch_size, self.num_patches, self.each, self.fixed = 4, 48, each, fixed
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 49, 16))
        self.register_buffer("more", torch.randn(1, 48, 16))
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.more
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        if self.fixed:
            x = x.reshape(x.shape[0], 49, 16)
        x = self.head(F.gelu(self.mix(x)))
        return x if self.each else x.mean(1)


def net(**options: bool) -> tuple[Net, CalibrationData]:
    torch.manual_seed(0)
    return Net(**options).eval(), CalibrationData({"x": torch.randn(4, 3, 24, 32)}, (), calls)


@pytest.mark.parametrize("size", [4, 5, 8, 12])
def test_an_enlarged_patch_is_embedded_as_the_patch_was(size: int) -> None:
    made = torch.Generator().manual_seed(size)
    weight = torch.randn(6, 3, 4, 4, generator=made, dtype=torch.float64)
    x = torch.randn(5, 3, 4, 4, generator=made, dtype=torch.float64)
    enlarged = F.interpolate(x, size=(size, size), mode="bilinear")
    found, wanted = F.conv2d(enlarged, resized_weight(weight, size)), F.conv2d(x, weight)
    assert float((found - wanted).abs().max()) <= 1e-9
    if size == 4:
        assert float((resized_weight(weight, 4) - weight).abs().max()) <= 1e-12


def test_positions_in_front_stay_and_the_others_are_interpolated() -> None:
    place = torch.linspace(0, 1, 8)
    grid = torch.stack([place[:, None].expand(8, 8), place[None].expand(8, 8)], dim=-1).reshape(1, 64, 2)
    positions = torch.cat([torch.tensor([[[7.0, 8.0], [9.0, 10.0]]]), grid], dim=1)
    same = resized_positions(positions, (8, 8), (8, 8))
    assert torch.allclose(same, positions, atol=1e-6)
    half = resized_positions(positions, (8, 8), (4, 4))
    assert half.shape == (1, 18, 2) and torch.equal(half[:, :2], positions[:, :2])
    inner = half[0, 2:].reshape(4, 4, 2)[1:3, 1:3]
    wanted = (place[2:6:2] + place[3:7:2]) / 2  # of pairs in the middle, where no border is mirrored
    assert torch.allclose(inner[:, 0, 0], wanted, atol=0.02) and torch.allclose(inner[0, :, 1], wanted, atol=0.02)


@torch.no_grad()
def test_a_model_gets_larger_patches_for_a_while_and_for_good() -> None:
    module, data = net()
    patches = find(module, data)
    assert (patches.name, patches.size, patches.image) == ("patch", 4, (24, 32))
    assert patches.positions == ("positions", "more") and patches.sizes == [8] and patches.count(8) == 12
    before = data.run(module)
    check(module, patches, 8, data)
    with resampled(module, patches, 8):
        assert data.run(module).shape == before.shape and (module.patch_size, module.num_patches) == (8, 12)
    assert torch.equal(data.run(module), before) and (module.patch_size, module.num_patches) == (4, 48)
    resample(module, patches, 8)
    assert module.positions.shape == (1, 13, 16) and isinstance(module.positions, nn.Parameter)
    assert module.more.shape == (1, 12, 16) and not isinstance(module.more, nn.Parameter)
    again = net()[0]
    replay(again, PatchesFacts(layers={"patch": PatchFacts(size=8, image=[24, 32], positions=["positions", "more"])}))
    again.load_state_dict(module.state_dict())
    assert torch.equal(data.run(again), data.run(module))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2"])
def test_models_of_transformers_get_larger_patches(name: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(image_size=24, patch_size=4, **sizes)
    module = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    data = CalibrationData({"pixel_values": torch.randn(2, 3, 24, 24)}, (), by_name)
    patches = find(module, data)
    assert patches.size == 4 and len(patches.positions) == 1 and patches.sizes == [6, 8, 12]
    check(module, patches, 12, data)
    resample(module, patches, 12)
    assert next(tensors_in(data.run(module))).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"), [({"each": True}, "has values for each patch"), ({"fixed": True}, "doesn't work with")]
)
def test_models_that_need_their_patches_are_refused(options: dict[str, bool], message: str) -> None:
    module, data = net(**options)
    before = data.run(module)
    with pytest.raises(InputError, match=message):
        check(module, find(module, data), 8, data)
    assert torch.equal(data.run(module), before)


def test_a_model_without_patches_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.LazyLinear(2))
    data = CalibrationData({"x": torch.randn(2, 3, 8, 8)}, (), calls)
    with pytest.raises(InputError, match="no layer of this model cuts its images into patches"):
        find(module, data)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"none": PatchFacts(size=8, image=[24, 32])}, "has no layer 'none'"),
        ({"head": PatchFacts(size=8, image=[24, 32])}, "cuts nothing into patches"),
        ({"patch": PatchFacts(size=7, image=[24, 32])}, "patches of 7 pixels"),
        ({"patch": PatchFacts(size=8, image=[24, 32], positions=["head.weight"])}, "no positions 'head.weight'"),
        ({"patch": PatchFacts(size=8, image=[1 << 14, 1 << 14], positions=["more"])}, "no positions 'more'"),
    ],
)
def test_facts_that_do_not_fit_are_refused(layers: dict[str, PatchFacts], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replay(net()[0], PatchesFacts(layers=layers))


def test_sizes_cut_the_image_without_a_rest() -> None:
    assert Patches("p", 16, (224, 224), ()).sizes == [28, 32, 56, 112]
    assert Patches("p", 16, (224, 192), ()).sizes == [32]
