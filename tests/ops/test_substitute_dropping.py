"""Tokens dropped or fused by attention: which ones stay, what the rest becomes, and where it is found again."""

from __future__ import annotations

import pytest
import torch
from test_substitute_tokens import drawn

from compresskit.ops.substitute.dropping import attention_got, drop
from compresskit.ops.substitute.merging import Tokens, in_windows


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_attention_of_class_tokens_is_counted(protected: int) -> None:
    query, key = drawn(2, 3, 9, 4), drawn(2, 3, 9, 5)[..., :4]
    weights = (query @ key.transpose(2, 3)).softmax(-1)
    wanted = (weights[:, :, :protected] if protected else weights).mean(dim=(1, 2))
    assert torch.allclose(attention_got(query, key, None, protected), wanted)
    bias = torch.zeros(2, 1, 1, 9, dtype=torch.float64)
    bias[0, ..., 5:] = -1e9
    got = attention_got(query, key, bias, protected)
    assert torch.equal(got[0, 5:], torch.zeros(4, dtype=torch.float64)) and torch.allclose(got.sum(1), got.new_ones(2))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("protected", [0, 2])
def test_tokens_with_the_most_attention_stay(protected: int, fuse: bool) -> None:
    x, got = drawn(3, 12, 8), drawn(3, 12).abs()
    now = drop(Tokens(x), got, 4, protected=protected, fuse=fuse)
    kept = 12 - protected - 4 - fuse
    most = got[:, protected:].topk(kept, dim=1).indices + protected
    for sample in range(3):
        assert torch.equal(now.x[sample, :protected], x[sample, :protected])
        assert torch.equal(now.x[sample, protected : protected + kept], x[sample, most[sample]])
    assert now.x.shape[1] == 8 and (now.mass is None) != fuse
    if fuse:
        gone = torch.ones(3, 12).scatter(1, most, 0).bool()
        gone[:, :protected] = False
        for sample in range(3):
            weight = got[sample, gone[sample]]
            assert torch.allclose(now.x[sample, -1], (weight[:, None] * x[sample, gone[sample]]).sum(0) / weight.sum())
        assert now.mass is not None and now.mass.sum(1).tolist() == [12.0] * 3 and now.mass[0, -1] == 5


def test_what_left_comes_back_as_it_was_and_stays_where_it_was() -> None:
    x = drawn(2, 11, 6)
    got = torch.arange(11.0, dtype=torch.float64).expand(2, -1)
    now = drop(Tokens(x), got, 3, protected=1, fuse=False)
    now = Tokens(now.x + 100, now.mass, now.padded, now.place, now.left)
    now = drop(now, now.x[..., 0] * 0 + torch.tensor([0, 0, 9, 8, 7, 6, 5, 4]), 2, protected=1, fuse=False)
    now = Tokens(now.x + 1000, now.mass, now.padded, now.place, now.left)
    # by falling attention after the first: 10 … 4 stay, then the two with least of the second time, 10 and 4, leave
    added = torch.tensor([1100.0, 0, 0, 0, 100, 1100, 1100, 1100, 1100, 1100, 100], dtype=torch.float64)
    assert torch.allclose(now.restored(11, 1, 0), x + added[:, None])


@pytest.mark.parametrize("fuse", [False, True])
def test_padding_leaves_first_and_is_in_no_mean(fuse: bool) -> None:
    x, mass, got = drawn(2, 10, 4), torch.ones(2, 10, dtype=torch.float64), drawn(2, 10).abs()
    mass[0, 6:] = 0
    for garbage in (0.0, 1e6):
        given = torch.where(mass[..., None] > 0, x, garbage)
        now = drop(Tokens(given, mass, padded=True), got, 3, protected=1, fuse=fuse)
        assert now.mass is not None and now.mass.sum(1).tolist() == [6, 10 if fuse else 7]
        real = now.x[0][now.mass[0] > 0]
        assert torch.allclose(real.sort(dim=0).values, x[0, :6].sort(dim=0).values)


@pytest.mark.parametrize("fuse", [False, True])
def test_each_window_loses_as_many(fuse: bool) -> None:
    x = drawn(2, 22, 6)
    now = in_windows(Tokens(x), 1, 4)
    got = drawn(2, 25).abs()
    now = drop(now, got, 1, protected=1, fuse=fuse, window=4)
    now = drop(now, drawn(2, 19).abs(), 1, protected=1, fuse=fuse, window=3)
    assert now.x.shape[1] == 1 + 6 * 2 and torch.equal(now.x[:, :1], x[:, :1])
    back = now.restored(22, 1, 2)
    assert back.shape == x.shape
    if fuse:
        assert now.mass is not None and now.mass.sum(1).tolist() == [22, 22]
    else:
        assert torch.equal(back, x)
        first = got[0, 1:5].argsort(descending=True)[:3] + 1
        assert {tuple(row) for row in now.x[0, 1:3].tolist()} < {tuple(row) for row in x[0, first].tolist()}
