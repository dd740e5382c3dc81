"""Second moments: what they are of, and what they say of an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.ops.calibration.moments import Collector, Moments, collectable, columns_of, output_error


def collected(layer: nn.Module, *batches: torch.Tensor, **extra: torch.Tensor) -> Moments:
    collector = Collector(layer)
    for batch in batches:
        collector.add(batch, **extra)
    found = collector.moments()
    assert found is not None
    return found


LAYERS = [
    (nn.Linear(6, 4), (5, 7, 6)),
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), (3, 4, 11)),
    (nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), (3, 4, 11)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (3, 4, 12, 13)),
    (nn.Conv2d(4, 8, (3, 1), padding="same", groups=4), (3, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_rows_times_the_flattened_weight_are_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    rows = columns_of(layer, x)
    parts = weight.reshape(len(rows), -1, rows.shape[2])
    out = (rows @ parts.mT).permute(1, 0, 2).flatten(1) + bias
    expected = layer(x)
    expected = expected.flatten(0, -2) if isinstance(layer, nn.Linear) else expected.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_the_gram_tells_the_output_error(layer: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), layer.get_parameter("weight")
    error = torch.randn(weight.shape, generator=generator)
    found = output_error(weight, weight.detach() + error, collected(layer, x))
    before = layer(x)
    with torch.no_grad():
        weight += error
        moved = (layer(x) - before).square()
        weight -= error
    axis = -1 if isinstance(layer, nn.Linear) else 1
    assert torch.allclose(found, moved.movedim(axis, -1).flatten(0, -2).mean(0), rtol=1e-3)


def test_batches_add_up_and_padding_does_not_count() -> None:
    layer = nn.Linear(6, 4)
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    whole, parts = collected(layer, x), collected(layer, x[:1], x[1:])
    assert torch.allclose(whole.gram, parts.gram, atol=1e-6) and whole.count == parts.count == 20
    keep = torch.ones(4, 5, dtype=torch.bool)
    keep[:, 3:] = False
    masked = collected(layer, x, keep=keep)
    assert torch.allclose(masked.gram, collected(layer, x[:, :3]).gram, atol=1e-6) and masked.count == 12


def test_what_the_original_stream_adds() -> None:
    layer = nn.Linear(6, 4)
    x, original = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = collected(layer, x, original=original)
    assert found.cross is not None and found.drift is not None
    assert torch.allclose(found.cross[0], (original - x).T @ x / 50, atol=1e-5)
    assert torch.allclose(found.drift[0], (original - x).mean(0), atol=1e-6)
    centred, away = found.centred(), x - x.mean(0)
    assert torch.allclose(centred.gram[0], away.T @ away / 50, atol=1e-5)
    assert centred.cross is not None
    assert torch.allclose(centred.cross[0], (original - x).T @ away / 50, atol=1e-5)


def test_layers_without_rows_are_told_apart() -> None:
    assert not collectable(nn.Embedding(3, 4)) and not collectable(nn.Conv3d(1, 1, 1))
    assert Collector(nn.Linear(2, 2)).moments() is None


def test_convolutions_are_unfolded_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, sizes = nn.Conv2d(2, 3, 3, padding=1), list[int]()
    x = torch.randn(7, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = collected(layer, x, original=2 * x)

    def spied(layer: nn.Module, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        sizes.append(len(x))
        return columns_of(layer, x, keep)

    monkeypatch.setattr("compresskit.ops.calibration.moments.columns_of", spied)
    monkeypatch.setattr("compresskit.ops.calibration.moments._UNFOLDED", 3 * columns_of(layer, x[:1]).numel() * 4)
    found = collected(layer, x, original=2 * x)
    assert max(sizes) == 3 and found.count == expected.count == 7 * 30
    assert torch.allclose(found.gram, expected.gram, atol=1e-5)
    assert found.cross is not None and expected.cross is not None
    assert torch.allclose(found.cross, expected.cross, atol=1e-5)


def test_an_original_of_another_shape_drops_cross_for_good() -> None:
    collector, x = Collector(nn.Linear(6, 4)), torch.randn(5, 6)
    for original in (x, x[:3], x):
        collector.add(x, original=original)
    found = collector.moments()
    assert found is not None and found.count == 15 and found.cross is None and found.drift is None
