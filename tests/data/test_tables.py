"""Delimiters, headers and ends of lines: a table is read as it is meant, or refused by what was found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compresskit.data.tables import read_table
from compresskit.errors import InputError

FILMS = ["great film", "bad film"]


def table(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_table(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("text", "label"), ("Label", "Text"), None])
def test_delimiters_are_found(tmp_path, delimiter, header):
    rows = [(text, str(1 - i)) for i, text in enumerate(FILMS)]
    if header is not None and header[0] == "Label":
        rows = [row[::-1] for row in rows]
    lines = [delimiter.join(row) for row in ([header] if header else []) + rows]
    found = table(tmp_path, "\r\n".join(lines) + "\r\n")
    assert found.first == FILMS
    np.testing.assert_array_equal(found.targets, [1, 0])


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_inside_of_text_stay(tmp_path, delimiter):
    found = table(tmp_path, f"good, very good{delimiter}1\nbad{delimiter}0\n")
    assert found.first == ["good, very good", "bad"]
    found = table(tmp_path, f'"one{delimiter}two",1\nthree,0\n')
    assert found.first == [f"one{delimiter}two", "three"]


def test_pairs_by_semicolons(tmp_path):
    found = table(tmp_path, "sentence1;sentence2;score\na b;c d;0.5\n")
    assert (found.first, found.second) == (["a b"], ["c d"])


@pytest.mark.parametrize(("delimiter", "named"), [(";", "semicolon"), ("\t", "tab"), ("|", "bar")])
@pytest.mark.parametrize("rows", [["great film{}pos", "bad film{}neg"], ["a{}b{}c{}1", "d{}e{}f{}2"]])
def test_a_delimiter_that_leads_to_no_table_is_named(tmp_path, delimiter, named, rows):
    with pytest.raises(InputError, match=named):
        table(tmp_path, "\n".join(row.replace("{}", delimiter) for row in rows))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_header_of_other_names_is_refused_by_its_line(tmp_path, delimiter):
    with pytest.raises(InputError, match=r"line 1: 'label'.*'sentiment'"):
        table(tmp_path, f"review{delimiter}sentiment\ngreat film{delimiter}1\nbad film{delimiter}0\n")


@pytest.mark.parametrize("header", ["review", "Review_Text", "text"])
def test_a_lone_header_is_no_sample(tmp_path, header):
    assert table(tmp_path, f"{header}\ngreat film\nbad film\n").first == FILMS


def test_a_first_line_like_the_others_is_a_sample(tmp_path):
    assert table(tmp_path, "great film\nbad film\n").first == FILMS
    assert table(tmp_path, "great\nbad\nawful\n").first == ["great", "bad", "awful"]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_at_line_feeds_only(tmp_path, char):
    rows = [{"text": f"first{char}second", "label": 1}, {"text": "third", "label": 0}]
    if char >= "\x7f":
        found = table(tmp_path, "".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in rows), "t.jsonl")
        assert found.first == [f"first{char}second", "third"]
    found = table(tmp_path, "".join(f"{r['text']},{r['label']}\n" for r in rows))
    assert found.first == [f"first{char}second", "third"]
