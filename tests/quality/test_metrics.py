"""Metrics against figures worked out by hand or by the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compresskit.data import Batch
from compresskit.errors import InputError, UsageError
from compresskit.model import InputSpec
from compresskit.quality import NonFiniteOutput, evaluate, open_metric, paired, pick
from compresskit.quality.embedding import average_ranks, pool, rank_correlation
from compresskit.quality.evaluate import score
from compresskit.quality.language import sequence_loss

RNG = np.random.default_rng(0)


class Data:
    """Batches of given arrays."""

    name = "data"

    def __init__(self, inputs, targets=None, kind="arrays"):
        self.inputs, self.targets, self.kind, self.labelled = inputs, targets, kind, targets is not None

    def __len__(self):
        n = len(next(iter(self.inputs.values())))
        return n // 2 if self.kind == "pairs" else n

    def batches(self, size, limit=None):
        step = 2 if self.kind == "pairs" else 1
        for i in range(0, min(len(self), limit or len(self)), size):
            j = min(i + size, limit or len(self))
            yield Batch(
                {k: v[step * i : step * j] for k, v in self.inputs.items()},
                None if self.targets is None else self.targets[i:j],
            )

    def fingerprint(self):
        return ""


class Echo:
    """A session that gives a function of its inputs."""

    def __init__(self, specs, function, outputs=("out",)):
        self.inputs, self.function, self.outputs, self.calls = specs, function, outputs, []

    def run(self, feeds):
        assert set(feeds) == {s.name for s in self.inputs}
        self.calls.append(len(next(iter(feeds.values()))))
        return dict(zip(self.outputs, self.function(**feeds), strict=True))


X = (InputSpec("x", "float32", ("batch", 8)),)
IDS = (InputSpec("input_ids", "int64", ("batch", "sequence"), 50),)


def classifier(specs=X):
    return Echo(specs, lambda x: (x,), ("logits",))


def classes(n=100, wrong=20):
    labels = RNG.integers(0, 8, n)
    shown = labels.copy()
    shown[:wrong] = (shown[:wrong] + 1) % 8
    return Data({"x": np.eye(8, dtype=np.float32)[shown]}, labels)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_accuracy_and_its_wilson_interval(batch):
    found = evaluate(classifier(), classes(), open_metric("accuracy"), batch=batch)
    assert (found.value, found.n, found.unit) == (80.0, 100, "%")
    assert (found.low, found.high) == pytest.approx((71.1170, 86.6633), abs=1e-3)  # statsmodels' proportion_confint


def test_limit_and_progress():
    seen = []
    found = evaluate(
        classifier(), classes(), open_metric("accuracy"), batch=8, limit=20, progress=lambda *a: seen.append(a)
    )
    assert (found.value, found.n) == (0.0, 20)
    assert seen == [("measuring accuracy", 8, 20), ("measuring accuracy", 16, 20), ("measuring accuracy", 20, 20)]


def test_top5_counts_rank_and_gives_ties_to_the_lower_class():
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (8, 1))
    found = evaluate(classifier(), Data({"x": logits}, np.arange(8)), open_metric("top5"))
    assert found.value == pytest.approx(100 * 5 / 8)
    constant = evaluate(classifier(), Data({"x": np.zeros((8, 8), np.float32)}, np.arange(8)), open_metric("top5"))
    assert constant.value == pytest.approx(100 * 5 / 8)


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (10, [4, 4, 4]), (12, [4, 4, 4])])
def test_a_fixed_batch_is_filled_up(n, expected):
    session = classifier((InputSpec("x", "float32", (4, 8)),))
    found = evaluate(session, classes(n, 0), open_metric("accuracy"))
    assert (found.value, found.n) == (100.0, n)
    assert session.calls == [4] * len(expected)


def reference_perplexity(logits, ids, mask):
    total, count = 0.0, 0
    for row in range(len(ids)):
        for t in range(1, ids.shape[1]):
            if mask[row, t] and mask[row, t - 1]:
                p = np.exp(logits[row, t - 1].astype(np.float64))
                total -= math.log(p[ids[row, t]] / p.sum())
                count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_perplexity_follows_its_definition_and_the_mask(side, dtype):
    ids = RNG.integers(0, 50, (12, 9))
    mask = np.ones_like(ids)
    if side != "none":
        for row in range(12):
            mask[row, slice(9 - row % 5, None) if side == "right" else slice(None, row % 5)] = 0
    table = RNG.standard_normal((50, 50)).astype(dtype)
    specs = (*IDS, InputSpec("attention_mask", "int64", ("batch", "sequence")))
    session = Echo(specs, lambda input_ids, attention_mask: (table[input_ids],), ("logits",))
    source = Data({"input_ids": ids, "attention_mask": mask}, kind="tokens")
    found = evaluate(session, source, open_metric("perplexity"), batch=5)
    expected = reference_perplexity(table[ids], ids, mask)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.low < found.value < found.high and found.n == 12


def test_perplexity_is_stable_for_large_logits():
    logits = np.array([[[1000.0, 0.0], [0.0, 1000.0], [0, 0]]], np.float32)
    assert sequence_loss(logits, np.array([[0, 0, 1]]), None).tolist() == [[0.0, 2.0]]
    assert sequence_loss(-logits, np.array([[0, 0, 1]]), None).tolist() == [[2000.0, 2.0]]
    assert open_metric("perplexity").value(np.array([[2000.0, 2.0]])) == math.exp(700)


def test_long_sequences_run_in_small_passes():
    session = Echo(IDS, lambda input_ids: (np.zeros((*input_ids.shape, 50), np.float32),), ("logits",))
    source = Data({"input_ids": RNG.integers(0, 50, (10, 1000))}, kind="tokens")
    found = evaluate(session, source, open_metric("perplexity"))
    assert found.value == pytest.approx(50) and max(session.calls) == 2


def test_average_ranks_and_spearman_with_ties():
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]
    a, b = np.array([1.0, 2, 2, 4, 5]), np.array([2.0, 1, 3, 3, 9])
    assert rank_correlation(a, b) == pytest.approx(0.76315789)  # scipy.stats.spearmanr
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a, np.ones(5)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pooling_leaves_padding_out(dtype):
    hidden = RNG.standard_normal((2, 4, 3)).astype(dtype)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    clean = pool(hidden, mask)
    hidden[0, 2:] = 9999
    np.testing.assert_array_equal(pool(hidden, mask), clean)
    np.testing.assert_allclose(clean[0], hidden[0, :2].astype(np.float64).mean(0), rtol=1e-3)
    assert np.isfinite(pool(hidden, np.zeros_like(mask))).all()


def pairs(n=40):
    vectors = RNG.standard_normal((2 * n, 4, 8)).astype(np.float32)
    cosine = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in vectors.astype(np.float64).mean(1).reshape(n, 2, 8)
    ]
    return Data({"x": vectors}, np.array(cosine), "pairs")


def test_spearman_of_embedding_pairs():
    session = Echo(
        (InputSpec("x", "float32", ("batch", 4, 8)),),
        lambda x: (x[:, 0] * 0 + 1, x),
        ("pooler_output", "last_hidden_state"),
    )
    source = pairs()
    for batch in (7, 64):
        assert evaluate(session, source, open_metric("spearman"), batch=batch).value == pytest.approx(100)
    source.targets = source.targets + RNG.standard_normal(40) * 0.2
    found = evaluate(session, source, open_metric("spearman"))
    assert found.low < found.value < found.high < 100
    assert evaluate(session, source, open_metric("spearman")) == found  # the bootstrap is seeded


USER = """
import numpy as np

def mse(outputs, batch):
    return ((outputs["logits"] - np.eye(8)[batch.targets]) ** 2).sum(axis=1)
mse.higher_is_better = False
mse.unit = "u"

def short(outputs, batch): return [1.0]
def raises(outputs, batch): raise KeyError("x")
def nan(outputs, batch): return np.full(len(batch.targets), np.nan)
number = 3
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "mine.py").write_text(USER)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


def test_a_users_metric(user):
    metric = open_metric(user("mse"))
    assert (metric.name, metric.unit, metric.higher_is_better) == ("mse", "u", False)
    found = evaluate(classifier(), classes(), metric, batch=32)
    assert found.value == pytest.approx(0.4) and found.low < 0.4 < found.high


@pytest.mark.parametrize(("name", "word"), [("short", "one number a sample"), ("raises", "KeyError"), ("nan", "NaN")])
def test_a_users_metric_that_fails(user, name, word):
    with pytest.raises(InputError, match=word):
        evaluate(classifier(), classes(), open_metric(user(name)))


def test_metric_names(user):
    with pytest.raises(UsageError, match="no metric 'f1'") as caught:
        open_metric("f1")
    assert "spearman" in caught.value.hint
    with pytest.raises(UsageError, match="`allow_code`"):
        open_metric(user("mse"), allow_code=False)
    with pytest.raises(InputError, match="not a function"):
        open_metric(user("number"))


@pytest.mark.parametrize(
    ("metric", "source", "needs"),
    [
        ("accuracy", Data({"x": np.ones((2, 8))}), "class labels"),
        ("top5", Data({"x": np.ones((4, 8))}, np.ones(2), "pairs"), "class labels"),
        ("perplexity", Data({"x": np.ones((2, 8))}), "token ids"),
        ("spearman", Data({"x": np.ones((2, 8))}, np.ones(2)), "sentence pairs"),
    ],
)
def test_a_metric_says_what_it_needs(metric, source, needs):
    with pytest.raises(UsageError, match=f"{metric} needs .*{needs}"):
        evaluate(classifier(), source, open_metric(metric))


@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (np.ones((3, 8), "f4"), np.array([0, 8, 1]), ["label 8", "8 scores"]),
        (np.ones((3, 8), "f4"), np.array([0, -1, 1]), ["label -1"]),
        (np.ones((3, 8), "f4"), np.array([0.5, 1, 2]), ["integer label", "float64"]),
        (np.ones((3, 1), "f4"), np.array([0, 0, 0]), ["more than 1 classes"]),
        (np.ones((3, 2, 8), "f4"), np.array([0, 0, 0]), ["(n, classes)", "(3, 2, 8)"]),
    ],
)
def test_outputs_and_labels_that_do_not_fit(x, labels, words):
    session = classifier((InputSpec("x", "float32", ("batch", *x.shape[1:])),))
    with pytest.raises(InputError) as caught:
        evaluate(session, Data({"x": x}, labels), open_metric("accuracy"))
    assert all(w in str(caught.value) for w in words), str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_model_gives_no_figure(bad):
    session = Echo(X, lambda x: (np.where(x > 0, bad, x),), ("logits",))
    with pytest.raises(NonFiniteOutput, match="'logits' holds"):
        evaluate(session, classes(), open_metric("accuracy"))


def test_equal_embeddings_give_no_figure():
    session = Echo((InputSpec("x", "float32", ("batch", 4, 8)),), lambda x: (np.ones_like(x),))
    with pytest.raises(NonFiniteOutput, match="undefined"):
        evaluate(session, pairs(), open_metric("spearman"))


def test_missing_input_is_named():
    session = classifier((InputSpec("a", "float32", ("batch", 8)), InputSpec("b", "float32", ("batch", 8))))
    with pytest.raises(InputError, match="'a' is not in the data"):
        evaluate(session, classes(), open_metric("accuracy"))


@pytest.mark.parametrize(
    ("kind", "labelled", "outputs", "task", "expected"),
    [
        ("images", True, ("out",), "unknown", "accuracy"),
        ("arrays", True, ("out",), "classification", "accuracy"),
        ("tokens", True, ("logits",), "classification", "accuracy"),
        ("tokens", True, ("logits",), "causal-lm", "perplexity"),
        ("tokens", False, ("logits",), "causal-lm", "perplexity"),
        ("tokens", False, ("logits",), "unknown", "perplexity"),
        ("tokens", False, ("last_hidden_state",), "unknown", None),
        ("tokens", False, ("last_hidden_state",), "embedding", None),
        ("pairs", True, ("last_hidden_state",), "embedding", "spearman"),
        ("images", False, ("out",), "classification", None),
    ],
)
def test_pick(kind, labelled, outputs, task, expected):
    found = pick(Data({"x": np.ones((2, 2))}, np.ones(2) if labelled else None, kind), outputs, task)
    assert (found and found.name) == expected


def simulate(metric, draw, truth, trials=300):
    """Share of trials in which the interval of the change holds the truth."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(trials):
        low, high = metric.change(*draw(rng))
        inside += low <= truth <= high
    return inside / trials


def test_paired_accuracy_covers_the_truth():
    def draw(rng):
        u = rng.random(200)
        return (u < 0.9)[:, None].astype(float), ((u < 0.87) | (u > 0.99))[:, None].astype(float)

    assert 0.92 <= simulate(open_metric("accuracy"), draw, -2.0) <= 0.99


def test_paired_perplexity_covers_the_truth():
    def draw(rng):
        tokens = rng.integers(20, 60, 40).astype(float)
        loss = tokens * (1.5 + 0.3 * rng.standard_normal(40))
        after = loss + tokens * (0.01 + 0.02 * rng.standard_normal(40))
        return np.stack([loss, tokens], 1), np.stack([after, tokens], 1)

    assert 0.90 <= simulate(open_metric("perplexity"), draw, math.exp(1.51) - math.exp(1.5)) <= 0.99


def test_pairing_is_sharper_than_two_intervals():
    metric = open_metric("accuracy")
    before = (RNG.random(2000) < 0.9)[:, None].astype(float)
    after = before.copy()
    after[np.flatnonzero(before)[:10]] = 0
    a, b = score(metric, before), score(metric, after)
    found = paired(metric, a, b)
    assert found.drop == pytest.approx(0.5)
    assert found.interval[0] > 0 and found.interval[1] - found.interval[0] < (a.high - a.low) / 2


def test_paired_knows_the_direction():
    metric = open_metric("perplexity")
    tokens = np.full(20, 10.0)
    loss = 15 + RNG.standard_normal(20)
    before, worse = (score(metric, np.stack([v, tokens], 1)) for v in (loss, loss + 0.5 + 0.01 * loss))
    found = paired(metric, before, worse)
    assert found.drop > 0 and 0 < found.interval[0] < found.drop < found.interval[1]
    back = paired(metric, worse, before)
    assert back.drop == pytest.approx(-found.drop) and back.interval[1] < 0


def test_paired_refuses_other_samples():
    metric = open_metric("accuracy")
    with pytest.raises(UsageError, match="can't be compared"):
        paired(metric, score(metric, np.ones((5, 1))), score(metric, np.ones((6, 1))))


def test_a_score_is_a_line_of_the_report():
    line = evaluate(classifier(), classes(), open_metric("accuracy")).measurement("model", "onnxruntime", 64)
    assert (line.name, line.value, line.unit, line.n, line.runtime, line.batch) == (
        "accuracy",
        80.0,
        "%",
        100,
        "onnxruntime",
        64,
    )
