"""Layers that are matched, features that are held against each other, and texts that a student writes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.distill.features import Generator, Projection, Tapped, feature_distance, projections
from compresskit.ops.distill.on_policy import continue_prompts, drawn_divergence
from compresskit.ops.distill.pairs import blocks_of, even_pairs, named_pairs
from compresskit.ops.distill.teacher import Stand, places_of
from compresskit.ops.distill.teacher_cache import TeacherCache
from compresskit.train.task import Task
from compresskit.train.writing import Writing


class Stack(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def stack(depth: int, width: int) -> Stack:
    torch.manual_seed(depth)
    return Stack(depth, width).eval()


def test_blocks_are_matched_at_equal_shares_of_the_way() -> None:
    assert even_pairs("ab", "123456") == [("a", "3"), ("b", "6")]
    assert even_pairs("abcd", "123456") == [("a", "1"), ("b", "3"), ("c", "4"), ("d", "6")]
    assert even_pairs("abcd", "12") == [("b", "1"), ("d", "2")]
    small = stack(2, 8)
    with torch.no_grad():
        # A Sequential among the blocks stands for its layers; those count that feed a layer with weights.
        assert blocks_of(small, lambda: small(torch.zeros(1, 4)), "student") == ["blocks.0.1"]
        flat = nn.Linear(4, 3)
        with pytest.raises(InputError, match=r"the teacher has no chain of blocks.*\n.*`layer_pairs`"):
            blocks_of(flat, lambda: flat(torch.zeros(1, 4)), "teacher")


def test_pairs_by_name_are_taken_in_order() -> None:
    small, large = stack(2, 8), stack(4, 16)
    found = named_pairs(["blocks.?=blocks.[13]", "stem=stem"], small, large)
    assert found == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3"), ("stem", "stem")]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("blocks.0", "expected STUDENT=TEACHER"),
        ("=blocks.0", "expected STUDENT=TEACHER"),
        ("nothing.*=blocks.?", "no layer of the student matches 'nothing.*'"),
        ("blocks.?=none", "no layer of the teacher matches 'none'"),
        ("blocks.?=blocks.?", "2 layers of the student.* and 4 of the teacher"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named_pairs([pattern], stack(2, 8), stack(4, 16))


def test_a_tapped_module_gives_its_output_and_features_and_stays_as_it_was() -> None:
    module = stack(2, 8)
    x = torch.randn(5, 4)
    out, features = Tapped(module, ["blocks.1", "blocks.0"])(x)
    assert torch.equal(out, module(x)) and torch.equal(module.head(features[0]), out)
    assert features[1].shape == (5, 8)
    assert all(not layer._forward_hooks for layer in module.modules())
    again = copy.deepcopy(Tapped(module, ["blocks.1"]))
    assert torch.equal(again(x)[1][0], features[0])
    module.spare = nn.Linear(2, 2)  # never called
    with pytest.raises(InputError, match="'spare' gives no tensor"):
        Tapped(module, ["spare"])(x)


def test_projections_bring_features_to_the_teachers_form() -> None:
    maps, wide = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 16, 16)
    tokens, vectors = torch.randn(2, 7, 4), torch.randn(2, 4)
    names = [("a", "A")] * 3
    student, teacher = [maps, tokens, vectors], [wide, torch.randn(2, 7, 6), torch.randn(2, 4)]
    made = projections(student, teacher, names)
    given = [project(x) for project, x in zip(made, student, strict=True)]
    assert [tuple(x.shape) for x in given] == [(2, 5, 8, 8), (2, 7, 6), (2, 4)]
    assert given[2] is vectors and not list(made[2].parameters())  # of the same width: as they are
    assert float(feature_distance(given, teacher).detach()) > 0
    for one, other in ((tokens, torch.randn(2, 6, 4)), (maps, tokens), (torch.randn(2, 1, 1, 1, 1), vectors)):
        with pytest.raises(InputError, match="features of the student's 'a'"):
            projections([one], [other], names[:1])


def test_features_of_padding_do_not_count() -> None:
    found, wanted = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    spoilt = wanted.masked_fill(~mask.unsqueeze(-1), 9.0)
    assert torch.isclose(feature_distance([found], [wanted], mask), feature_distance([found], [spoilt], mask))


def test_a_generator_hides_positions_in_training_only() -> None:
    torch.manual_seed(0)
    generator = Generator(3, 5, 0.5, maps=True)
    seen: list[Tensor] = []
    generator.generate.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.ones(2, 3, 16, 16)
    generator(x)
    hidden = (seen[0] == 0).all(1)
    assert 0.4 < float(hidden.float().mean()) < 0.6
    generator.eval()
    assert torch.equal(generator(x), generator(x))
    assert not (seen[-1] == 0).all(1).any()
    tokens = Generator(4, 4, 0.5, maps=False)
    assert tokens(torch.randn(2, 9, 4)).shape == (2, 9, 4)


def test_a_thin_student_learns_a_linear_map_of_its_teacher() -> None:
    """A projection is trained beside the student, and takes the part of the work that isn't the student's."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    wanted = x @ torch.randn(4, 16)
    project = Projection(4, 16, maps=False)
    optimizer = torch.optim.Adam(project.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = feature_distance([project(x)], [wanted])
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


class Counting(nn.Module):
    """Says that the next token is the last one plus one, up to 9, the end; with or without kept keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, ids: Tensor) -> Any:
        self.calls.append(ids.shape[1])
        return Output(logits=100.0 * nn.functional.one_hot((ids + 1).clamp_max(9), 10))


class Keeping(Counting):
    """As transformers from 5.24 on names it."""

    def forward(self, ids: Tensor, cache: Any = None, use_cache: bool = False) -> Any:
        out = super().forward(ids)
        assert use_cache and cache == (None if len(self.calls) == 1 else "kept")
        out.cache = "kept"
        return out


class KeepingAsBefore(Counting):
    def forward(self, ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        out = super().forward(ids)
        assert use_cache and past_key_values == (None if len(self.calls) == 1 else "kept")
        out.past_key_values = "kept"
        return out


class Output(dict[str, Any]):
    cache: str
    past_key_values: str


@pytest.mark.parametrize("kind", [Counting, Keeping, KeepingAsBefore])
def test_a_student_writes_on_until_its_end(kind: type[Counting]) -> None:
    module = kind()
    tokens, counts = continue_prompts(module, torch.tensor([[3, 4], [6, 7]]), 4, end=(9,))
    assert tokens.tolist() == [[3, 4, 5, 6, 7, 8], [6, 7, 8, 9, 9, 9]]
    assert counts.tolist() == [[False] * 2 + [True] * 4, [False] * 2 + [True] * 2 + [False] * 2]
    assert module.calls == ([2, 3, 4, 5] if kind is Counting else [2, 1, 1, 1])


def test_texts_padded_in_front_are_refused() -> None:
    task = Task(("input_ids", "attention_mask"), lambda module, batch: module(batch["input_ids"]), "tokens", True)
    tokens, mask = torch.tensor([[0, 0, 3, 4]]), torch.tensor([[0, 0, 1, 1]])
    loss = Writing(0.0, 2, 2, 1.0, 0.5).loss(task, nn.Embedding(10, 10))
    with pytest.raises(InputError, match="padded at their end only"):
        loss(nn.Embedding(10, 10), (tokens, mask))


def test_the_loss_on_written_tokens_looks_at_where_they_were_drawn() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Embedding(10, 10), nn.Embedding(10, 10)
    tokens, counts = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[False, False, True, True]])
    loss = drawn_divergence(student(tokens), teacher(tokens), counts, 0.5)
    (slope,) = torch.autograd.grad(loss, student.weight)
    assert sorted(slope.abs().sum(1).nonzero().flatten().tolist()) == [4, 5]


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.rows += len(x)
        return x.sum(1, keepdim=True) if mask is None else (x * mask).sum(1, keepdim=True)


def stand(teacher: nn.Module, *names: str) -> Stand:
    return Stand(teacher, lambda module, batch: module(**batch), names, places_of(names, names))


def test_a_teacher_is_asked_once_for_each_sample() -> None:
    teacher = Counted()
    asked = TeacherCache(stand(teacher, "x"))
    x = torch.randn(12, 5)
    first = asked(x=x)
    again = torch.randperm(12)
    assert torch.equal(asked(x=x[again]), first[again]) and teacher.rows == 12
    assert torch.equal(asked(x[:3]), first[:3]) and teacher.rows == 12
    x[0, 0] += 1  # another sample
    assert torch.equal(asked(x=x), x.sum(1, keepdim=True)) and teacher.rows == 24
    masked = TeacherCache(stand(Counted(), "x", "mask"))
    ones = torch.ones(12, 5)
    assert not torch.equal(masked(x=x, mask=ones), masked(x=x, mask=ones * (torch.arange(5) > 2)))
    small = TeacherCache(stand(teacher, "x"), most=4)  # one answer
    assert torch.equal(small(x=x), small(x=x)) and teacher.rows == 48


def test_inputs_of_a_teacher_are_those_of_the_same_name_or_place() -> None:
    assert places_of(["b", "a"], ["a", "b", "c"]) == {"b": "b", "a": "a"}
    assert places_of(["image"], ["x"]) == {"image": "x"}
    with pytest.raises(InputError, match="the teacher takes a, z, the student a"):
        places_of(["a", "z"], ["a"])
    other = Stand(Counted(), lambda module, batch: module(**batch), ("image",), {"x": "image"})
    assert torch.equal(other(image=torch.ones(2, 3)), other(torch.ones(2, 3)))
    assert not other.train().training
