"""Samples from text, with a tokenizer made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from compresskit.data import input_specs, open_source
from compresskit.data.text import PairSource, RunningText
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["the", "cat", "dog", "sat", "ran", "on", "mat", "a", "far", "away"]
AXES = ("batch", "sequence")
BERT = tuple(InputSpec(n, "int64", AXES, 20) for n in ("input_ids", "attention_mask", "token_type_ids"))


def write_tokenizer(folder: Path, masked: bool = True) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(["[MASK]"] if masked else [])]
    vocabulary = {w: i for i, w in enumerate([*special, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=32)  # as all-MiniLM's file does: must not be obeyed
    made.enable_truncation(4)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("gpt"), masked=False)


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def test_a_line_ends_at_a_line_feed_only(tmp_path, bert):
    path = write(tmp_path / "a.txt", "the\u2028cat\u2029sat\x85ran\x0b\x0c\x1c\na dog\r\n")
    assert len(open_source(path, tokenizer=bert, inputs=BERT)) == 2


def test_lines_are_padded_to_the_longest_of_a_batch(tmp_path, bert):
    path = write(tmp_path / "a.txt", "\ufeffthe cat\n\n  a dog sat on the mat\r\nran\n")
    source = open_source(path, tokenizer=bert, inputs=BERT)
    assert (source.kind, source.labelled, len(source)) == ("tokens", False, 3)
    batch = next(source.batches(8))
    assert list(batch.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert batch.inputs["attention_mask"].sum(axis=1).tolist() == [4, 8, 3]
    assert batch.inputs["input_ids"].shape == (3, 8)
    assert batch.inputs["input_ids"][0].tolist() == [2, 5, 6, 3, 0, 0, 0, 0]
    assert [b.inputs["input_ids"].shape for b in source.batches(1)] == [(1, 4), (1, 8), (1, 3)]


@pytest.mark.parametrize(("sequence", "limit", "expected"), [(5, None, 5), (128, 6, 6), (128, None, 12), (4, 6, 4)])
def test_truncation_at_the_smallest_limit(tmp_path, sequence, limit, expected):
    folder = write_tokenizer(tmp_path / "model")
    (folder / "config.json").write_text("{broken")
    if limit:
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    path = write(tmp_path / "a.txt", " ".join(WORDS))
    batch = next(open_source(path, tokenizer=folder, sequence=sequence).batches(1))
    assert batch.inputs["input_ids"].shape == (1, expected)
    assert batch.inputs["input_ids"][0, -1] == 3  # the closing token survives


def test_a_fixed_sequence_is_filled(tmp_path, bert):
    specs = tuple(InputSpec(s.name, "int32", ("batch", 16), 20) for s in BERT)
    batch = next(open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=bert, inputs=specs).batches(1))
    assert all(v.shape == (1, 16) and v.dtype == np.int32 for v in batch.inputs.values())
    assert batch.inputs["attention_mask"].sum() == 4


def test_another_name_of_the_ids(tmp_path, bert):
    specs = (InputSpec("tokens", "int64", AXES),)
    batch = next(open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=bert, inputs=specs).batches(1))
    assert list(batch.inputs) == ["tokens"]


@pytest.mark.parametrize(("task", "fixture"), [("causal-lm", "bert"), ("unknown", "gpt")])
def test_running_text_for_language_models(tmp_path, request, task, fixture, monkeypatch):
    monkeypatch.setattr("compresskit.data.text._PIECE", 10)  # several pieces
    words = (WORDS * 3)[:29]
    path = write(tmp_path / "a.txt", "\n".join(words) + "\n")
    source = open_source(path, tokenizer=request.getfixturevalue(fixture), sequence=8, task=task)
    assert isinstance(source, RunningText)
    assert next(source.batches(2, 1)).inputs["input_ids"].shape == (1, 8)  # before the whole was tokenized
    assert len(source) == 3
    got = np.concatenate([b.inputs["input_ids"] for b in source.batches(2)])
    base = 5 if fixture == "bert" else 4
    assert got.ravel().tolist() == [base + WORDS.index(w) for w in words[:24]]


def test_running_text_shorter_than_a_sample(tmp_path, gpt):
    with pytest.raises(InputError, match="fewer than one sample of 128"):
        open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=gpt)


PAIRS = 'the cat,"a dog, far",2.5\nran,sat,0\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", PAIRS),
        ("b.csv", "Sentence1,sentence2,score\n" + PAIRS),
        ("c.csv", 'score,sentence2,sentence1\n2.5,"a dog, far",the cat\n0,sat,ran\n'),
        (
            "d.jsonl",
            '{"sentence1": "the cat", "sentence2": "a dog, far", "score": 2.5, "more": [1]}\n\n'
            '{"score": 0, "sentence1": "ran", "sentence2": "sat"}\n',
        ),
    ],
)
def test_pairs_are_interleaved_rows(tmp_path, bert, name, text):
    source = open_source(write(tmp_path / name, text), tokenizer=bert)
    assert isinstance(source, PairSource)
    assert (source.kind, source.labelled, len(source)) == ("pairs", True, 2)
    (batch,) = source.batches(2)
    assert batch.targets.tolist() == [2.5, 0.0]
    assert batch.inputs["input_ids"][:, 1].tolist() == [5, 12, 9, 8]  # the | a | ran | sat
    assert [b.inputs["input_ids"].shape[0] for b in source.batches(1)] == [2, 2]


@pytest.mark.parametrize(
    ("name", "text", "targets"),
    [
        ("a.csv", "the cat,1\nsat,0\n", [1, 0]),
        ("b.csv", "label,text\n1,the cat\n0,sat\n", [1, 0]),
        ("c.jsonl", '{"text": "the cat", "label": 1}\n{"text": "sat", "label": 0}', [1, 0]),
        ("d.csv", "the cat\nsat\n", None),
        ("e.jsonl", '{"text": "the cat"}\n{"text": "sat"}', None),
    ],
)
def test_labelled_texts(tmp_path, bert, name, text, targets):
    source = open_source(write(tmp_path / name, text), tokenizer=bert)
    assert (source.kind, source.labelled, len(source)) == ("tokens", targets is not None, 2)
    batch = next(source.batches(4))
    assert batch.inputs["input_ids"][:, 1].tolist() == [5, 8]
    assert targets is None or (batch.targets.tolist() == targets and batch.targets.dtype == np.int64)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "the cat,sat,1\nran,far\n", ["line 2", "expected 3 columns, found 2"]),
        ("a.csv", "a,b,c,d\n", ["line 1", "4 columns"]),
        ("a.csv", "the,cat,good\n", ["line 1", "'score'", "'good'"]),
        ("a.csv", "the,cat,nan\n", ["line 1", "'score'"]),
        ("a.csv", "the,cat,1\n,cat,1\n", ["line 2", "'sentence1'", "nothing"]),
        ("a.csv", "the cat,good\n", ["line 1", "'label'", "'good'"]),
        ("a.csv", "the cat,-1\n", ["line 1", "'label'"]),
        ("a.csv", "the cat,1.5\n", ["line 1", "'label'"]),
        ("a.csv", 'the cat,"1\n', ["not CSV"]),
        ("a.csv", f"{'x' * 140_000},1\n", ["not CSV", "field larger"]),
        ("a.csv", "text,label\n", ["no rows"]),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', ["line 2", "not JSON"]),
        ("a.jsonl", '{"text": "a"}\n{"other": 1}\n', ["line 2", "expected text", "other"]),
        ("a.jsonl", "[1, 2]\n", ["line 1", "object"]),
        ("a.jsonl", '{"body": "a"}\n', ["line 1", "sentence1,sentence2,score", "body"]),
        ("a.jsonl", '{"text": 3}\n', ["line 1", "'text'", "3"]),
        ("a.jsonl", '{"text": "a", "label": true}\n', ["line 1", "'label'"]),
        ("a.jsonl", "[" * 100_000, ["line 1"]),
        ("a.txt", " \n\n", ["is empty"]),
        ("a.txt", "", ["is empty"]),
    ],
)
def test_bad_text_names_the_line(tmp_path, bert, name, text, words):
    with pytest.raises(InputError) as caught:
        open_source(write(tmp_path / name, text), tokenizer=bert)
    assert all(w in str(caught.value) for w in words), str(caught.value)


def test_text_that_is_not_utf8(tmp_path, bert):
    (tmp_path / "a.txt").write_bytes(b"the cat \xff")
    with pytest.raises(InputError, match="byte 8"):
        open_source(str(tmp_path / "a.txt"), tokenizer=bert)


def test_a_model_without_tokenizer_says_what_to_do(tmp_path):
    path = write(tmp_path / "a.txt", "the cat")
    for tokenizer, kind in ((None, UsageError), (tmp_path, InputError)):
        with pytest.raises(kind, match=r"tokenizer\.json") as caught:
            open_source(path, tokenizer=tokenizer)
        assert "input_ids" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version":"1.0","model":{"type":"No"}}'])
def test_a_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=tmp_path)


def test_missing_tokenizers_names_the_extra(tmp_path, bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MachineError, match=r"compresskit\[hf\]"):
        open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=bert)


def test_another_models_tokenizer(tmp_path, bert):
    specs = (InputSpec("input_ids", "int64", AXES, 6),)
    source = open_source(write(tmp_path / "a.txt", "the mat"), tokenizer=bert, inputs=specs)
    with pytest.raises(InputError, match="0 to 5"):
        next(source.batches(1))


@pytest.mark.parametrize(
    "spec",
    [InputSpec("pixel_values", "float32", ("batch", 3, 8, 8)), InputSpec("x", "float32", ("batch", 9))],
)
def test_a_model_that_takes_no_text(tmp_path, bert, spec):
    with pytest.raises(InputError, match=f"the model takes {spec.name}"):
        open_source(write(tmp_path / "a.txt", "the mat"), tokenizer=bert, inputs=(spec,))


def test_normalize_and_short_sequences_are_usage_errors(tmp_path, bert):
    path = write(tmp_path / "a.txt", "the cat")
    with pytest.raises(UsageError, match="`normalize`"):
        open_source(path, tokenizer=bert, normalize="imagenet")
    with pytest.raises(UsageError, match="at least 2"):
        open_source(path, tokenizer=bert, sequence=1)


def test_fingerprint_knows_text_tokenizer_and_length(tmp_path, bert, gpt):
    path = write(tmp_path / "a.csv", "the cat,1\nsat,0\n")
    found = [
        open_source(path, tokenizer=bert),
        open_source(path, tokenizer=bert, sequence=7),
        open_source(path, tokenizer=gpt),
        open_source(write(tmp_path / "b.csv", "the cat,1\nsat,1\n"), tokenizer=bert),
    ]
    assert len({s.fingerprint() for s in found}) == 4
    (tmp_path / "b").mkdir()
    again = open_source(write(tmp_path / "b" / "c.csv", "the cat,1\nsat,0\n"), tokenizer=bert)
    assert again.fingerprint() == found[0].fingerprint()


def test_input_specs_take_the_vocabulary(tmp_path, bert):
    specs = input_specs(open_source(write(tmp_path / "a.txt", "the cat"), tokenizer=bert))
    assert specs[0] == InputSpec("input_ids", "int64", AXES, 15)
    assert specs[1].name == "attention_mask"
