"""Fidelity without labels, and the made-up inputs it can run on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compresskit.data import Batch
from compresskit.errors import InputError, UsageError
from compresskit.model import InputSpec
from compresskit.quality import NonFiniteOutput, compare_outputs, synthetic_inputs
from compresskit.quality.decibel import MAX_SQNR

X = (InputSpec("x", "float32", ("batch", 8)),)
TEXT = (
    InputSpec("input_ids", "int64", ("batch", "sequence"), 50),
    InputSpec("attention_mask", "int64", ("batch", "sequence")),
)


class Model:
    def __init__(self, function, output="out", specs=X):
        self.function, self.outputs, self.inputs = function, (output,), specs

    def run(self, feeds):
        return {self.outputs[0]: self.function(**feeds)}


def test_the_same_model_is_perfect():
    model = Model(lambda x: x, "logits")
    found = compare_outputs(model, model, synthetic_inputs(X, 100, seed=1))
    assert (found.n, found.sqnr, found.max_abs, found.agreement, found.output) == (100, MAX_SQNR, 0.0, 100.0, "logits")
    assert found.cosine == pytest.approx(1) and found.worst == pytest.approx(1)


@pytest.mark.parametrize("batch", [3, 64])
def test_figures_follow_their_definitions(batch):
    source = synthetic_inputs(X, 50)
    x = np.concatenate([b.inputs["x"] for b in source.batches(50)]).astype(np.float64)
    noisy = (x + 0.1 * np.sin(40 * x)).astype(np.float32)
    a, b = (
        Model(lambda x: x, "logits"),
        Model(lambda x: (x + 0.1 * np.sin(40 * x.astype(np.float64))).astype("f4"), "logits"),
    )
    found = compare_outputs(a, b, source, batch=batch)
    cosines = (x * noisy).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(noisy, axis=1)
    assert found.cosine == pytest.approx(cosines.mean())
    assert found.worst == pytest.approx(cosines.min())
    assert found.sqnr == pytest.approx(10 * math.log10((x**2).sum() / ((x - noisy) ** 2).sum()), abs=1e-4)
    assert found.max_abs == pytest.approx(np.abs(x - noisy).max())
    assert found.agreement == pytest.approx(100 * (x.argmax(1) == noisy.argmax(1)).mean())
    assert found.cosine_interval[0] < found.cosine < found.cosine_interval[1]
    names = {s.metric: s for s in found.scores()}
    assert set(names) == {"cosine", "sqnr", "max_abs", "agreement"}
    assert names["agreement"].low <= names["agreement"].value <= names["agreement"].high
    assert compare_outputs(a, b, source, limit=10).n == 10


class Padded:
    """Text with padding on the right."""

    name, kind, labelled = "padded", "tokens", False

    def __init__(self, n=6, length=9):
        rng = np.random.default_rng(0)
        self.mask = (np.arange(length)[None] < rng.integers(3, length, n)[:, None]).astype(np.int64)
        self.ids = rng.integers(0, 50, (n, length))

    def __len__(self):
        return len(self.ids)

    def batches(self, size, limit=None):
        yield Batch({"input_ids": self.ids, "attention_mask": self.mask})


TABLE = np.random.default_rng(5).standard_normal((50, 16)).astype(np.float32)


@pytest.mark.parametrize("output", ["last_hidden_state", "logits"])
def test_padding_does_not_count(output):
    clean = Model(lambda input_ids, attention_mask: TABLE[input_ids], output, TEXT)
    dirty = Model(
        lambda input_ids, attention_mask: TABLE[input_ids] + 1000 * (1 - attention_mask[..., None]).astype("f4"),
        output,
        TEXT,
    )
    found = compare_outputs(clean, dirty, Padded())
    assert found.cosine == pytest.approx(1) and found.max_abs == 0
    assert found.agreement == (100.0 if output == "logits" else None)
    assert found.predictions == (int(Padded().mask.sum()) if output == "logits" else 0)


@pytest.mark.parametrize(
    ("output", "task", "counted"),
    [
        ("out", "classification", True),
        ("out", "causal-lm", True),
        ("out", "unknown", False),
        ("logits", "unknown", True),
        ("logits", "embedding", False),
    ],
)
def test_agreement_is_for_scores_only(output, task, counted):
    model = Model(lambda x: x, output)
    assert (compare_outputs(model, model, synthetic_inputs(X, 8), task=task).agreement is not None) is counted


def test_zero_outputs():
    zero, same = Model(lambda x: x * 0), Model(lambda x: x)
    source = synthetic_inputs(X, 10)
    assert compare_outputs(zero, zero, source).cosine == 1
    found = compare_outputs(same, zero, source)
    assert found.cosine == 0 and found.sqnr == pytest.approx(0)
    assert compare_outputs(zero, same, source).sqnr == -MAX_SQNR
    assert compare_outputs(same, Model(lambda x: -x), source).cosine == pytest.approx(-1)


def test_too_few_samples_have_no_interval():
    model = Model(lambda x: x)
    assert compare_outputs(model, model, synthetic_inputs(X, 3)).cosine_interval is None


@pytest.mark.parametrize(("broken", "which"), [(0, "original"), (1, "new model")])
def test_a_broken_model_is_named(broken, which):
    models = [Model(lambda x: x), Model(lambda x: x)]
    models[broken] = Model(lambda x: np.where(x > 1, np.nan, x))
    with pytest.raises(NonFiniteOutput, match=f"the {which}'s output 'out' holds"):
        compare_outputs(*models, synthetic_inputs(X, 20))


def test_models_that_cannot_be_compared():
    source = synthetic_inputs(X, 20)
    with pytest.raises(InputError, match="no output in common"):
        compare_outputs(Model(lambda x: x, "a"), Model(lambda x: x, "b"), source)
    with pytest.raises(InputError, match=r"\(20, 8\) in the original and \(20, 7\)"):
        compare_outputs(Model(lambda x: x), Model(lambda x: x[:, :7]), source)


def test_synthetic_inputs_by_kind():
    specs = (
        *TEXT,
        InputSpec("token_type_ids", "int32", ("batch", "sequence")),
        InputSpec("position_ids", "int64", ("batch", "sequence")),
        InputSpec("pixels", "float16", ("batch", 3, "height", 4)),
    )
    source = synthetic_inputs(specs, 5, {"sequence": 7, "height": 6}, seed=3)
    batch = next(source.batches(5)).inputs
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "input_ids": ((5, 7), "int64"),
        "attention_mask": ((5, 7), "int64"),
        "token_type_ids": ((5, 7), "int32"),
        "position_ids": ((5, 7), "int64"),
        "pixels": ((5, 3, 6, 4), "float16"),
    }
    assert batch["input_ids"].min() >= 0 and batch["input_ids"].max() < 50 and np.ptp(batch["input_ids"]) > 10
    assert batch["attention_mask"].all() and not batch["token_type_ids"].any()
    assert batch["position_ids"][2].tolist() == list(range(7))
    assert source.kind == "tokens" and not source.labelled


def test_synthetic_inputs_are_seeded():
    same, again, other = (synthetic_inputs(X, 10, seed=s) for s in (1, 1, 2))
    assert same.fingerprint() == again.fingerprint() != other.fingerprint()
    rows = np.concatenate([b.inputs["x"] for b in same.batches(3)])
    np.testing.assert_array_equal(rows, next(again.batches(10)).inputs["x"])


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        ((), "not known"),
        ((InputSpec("x", "float32", ("batch", "width")),), "'width'"),
        ((InputSpec("ids", "int64", ("batch", 4)),), "'ids'"),
    ],
)
def test_what_cannot_be_made_up(specs, word):
    with pytest.raises(UsageError, match=word):
        synthetic_inputs(specs, 4)
