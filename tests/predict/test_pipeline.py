"""Bundles that answer: what is recorded when one is written, and what the library and the command line make of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import transformers
from PIL import Image
from predict_material import TEXTS, bundles

import compresskit
from compresskit.checkpoint.bundle import read_card
from compresskit.checkpoint.usage_files import usage_of
from compresskit.errors import InputError, UsageError
from compresskit.usage import METADATA, Pixels, Usage

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module", autouse=True)
def _quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bundles: ``sentences``, ``classes`` (of texts) and ``pictures``, with what each was made from."""
    place = tmp_path_factory.mktemp("made")
    bundles(place, {"st": "sentences", "cls": "classes", "m.pt": "pictures8"}, ".5,.4,.3/.2,.2,.1")
    return place


def test_a_classifier_answers_as_transformers_pipeline(made: Path, tmp_path: Path) -> None:
    """Of the original, exported as it is: what comes before and after the model is the same."""
    folder = made / "cls"
    compresskit.export(str(folder), tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    theirs = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)(TEXTS)
    ours = compresskit.pipeline(tmp_path / "model.onnx")(TEXTS, top=0)
    for one, two in zip(ours, theirs, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in two]
        assert np.allclose([each["score"] for each in one], [each["score"] for each in two], atol=1e-5)
    assert len({one[0]["label"] for one in ours}) > 1 or ours[0][0]["score"] != ours[1][0]["score"]


def test_the_bundle_of_a_classifier_knows_its_labels(made: Path) -> None:
    found = compresskit.pipeline(made / "classes")(TEXTS[0], top=2)
    assert [set(one) for one in found] == [{"label", "score"}] * 2 and {one["label"] for one in found} <= {
        "bad", "fair", "good",
    }  # fmt: skip


def test_embeddings_of_the_graph_and_of_its_tokens_are_the_same(made: Path) -> None:
    """``sentence_embedding`` is what pooling the vectors of tokens gives; texts are cut where the folder says."""
    pipe = compresskit.pipeline(made / "sentences")
    found = pipe(TEXTS)
    assert found.shape == (3, 16) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(pipe(TEXTS[1]), found[1], atol=1e-6)
    feeds = pipe._preparing.texts(TEXTS)
    assert feeds["input_ids"].shape == (3, 6)
    session = onnxruntime.InferenceSession(str(made / "sentences" / "model.onnx"))
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    mask = feeds["attention_mask"][:, :, None]
    mean = (outputs["last_hidden_state"] * mask).sum(1) / mask.sum(1)
    assert np.allclose(outputs["sentence_embedding"], mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    assert np.allclose(found, outputs["sentence_embedding"], atol=1e-6)


def test_pictures_are_normalized_as_the_bundle_was_measured(made: Path) -> None:
    usage = read_card(made / "pictures8").usage
    assert usage.labels == ("cat", "dog", "fox") and usage.scores == "softmax"
    assert usage.pixels == Pixels(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    pipe, folder = compresskit.pipeline(made / "pictures8"), made / "pictures"
    paths = sorted(folder.rglob("*.png"))
    data = compresskit.open_data(folder, made / "pictures8", normalize=".5,.4,.3/.2,.2,.1")
    session = onnxruntime.InferenceSession(str(made / "pictures8" / "model.onnx"))
    measured = {}
    for batch in data.batches(1):
        scores = np.exp(session.run(None, batch.inputs)[0][0])
        measured[round(float(scores.max() / scores.sum()), 5)] = int(scores.argmax())
    for best in (one[0] for one in pipe(paths, top=1)):
        assert usage.labels[measured[round(best["score"], 5)]] == best["label"]
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    ready = ((pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]).transpose(0, 3, 1, 2).astype(np.float32)
    for one, two in zip(pipe(pixels), pipe(ready), strict=True):
        assert np.allclose([each["score"] for each in one], [each["score"] for each in two], atol=1e-5)


@pytest.mark.parametrize("name", ["sentences", "classes", "pictures8"])
def test_the_onnx_file_alone_knows_as_much(made: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes((made / name / "model.onnx").read_bytes())
    if (made / name / "tokenizer.json").exists():
        (tmp_path / "tokenizer.json").write_bytes((made / name / "tokenizer.json").read_bytes())
    alone, whole = compresskit.pipeline(tmp_path / "model.onnx"), compresskit.pipeline(made / name)
    assert alone.card.usage == whole.card.usage != Usage()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    told = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert ("tokenizer" in told) == (name != "pictures8")
    given: Any = sorted((made / "pictures").rglob("*.png")) if name == "pictures8" else TEXTS
    assert str(alone(given)) == str(whole(given))


def test_a_bundle_of_an_earlier_version_is_read_by_its_files(made: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(made / "sentences", old)
    card = json.loads((old / "compresskit.json").read_text())
    assert card.pop("usage") and card["version"] == 3
    (old / "compresskit.json").write_text(json.dumps({**card, "version": 2}))
    assert np.array_equal(compresskit.pipeline(old)(TEXTS), compresskit.pipeline(made / "sentences")(TEXTS))


@pytest.mark.parametrize("name", ["sentences", "classes", "pictures8"])
def test_the_lines_of_the_readme_run_as_they_stand(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(made / name, folder)
    shutil.copyfile(made / "pictures" / "cat" / "0.png", folder / "picture.jpg")
    text = (folder / "README.md").read_text(encoding="utf-8")
    report = compresskit.read_report(folder)
    assert f"**{report.verdict.value}**" in text and "README.md" not in (folder / "compresskit.json").read_text()
    if name == "sentences":
        assert text.startswith('---\nlicense: "apache-2.0"\nlanguage: "en"\nlibrary_name: sentence-transformers\n')
    if name == "pictures8":
        accuracy = report.values("accuracy")
        assert len(accuracy) == 2 and all(f" {found.value:.4g} % [" in text for found in accuracy.values())
    monkeypatch.chdir(folder)
    shown = []
    blocks = BLOCK.findall(text)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        shown.append(capsys.readouterr().out)
    if name != "sentences":  # of the same sample the same class, with this package and without
        best = max(eval(shown[0]), key=lambda one: one["score"])["label"]
        assert best in {"bad", "fair", "good", "cat", "dog", "fox"} and (name == "classes" or best in shown[1])
    else:
        assert shown[1].strip() == "(2, 16)"


def test_without_an_onnx_file_the_lines_load_the_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is made of a bundle keeps the licence of the first original."""
    step = [compresskit.method("prune.magnitude", sparsity=0.1)]
    compresskit.run(made / "st", step, tmp_path / "one", export=False)
    compresskit.run(tmp_path / "one", step, tmp_path / "two", export=False)
    text = (tmp_path / "two" / "README.md").read_text(encoding="utf-8")
    assert 'license: "apache-2.0"\nlanguage: "en"\n' in text
    (block,) = BLOCK.findall(text)
    monkeypatch.chdir(tmp_path / "two")
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("name", "sample"), [("sentences", "A text."), ("classes", "A text."), ("pictures8", "picture.jpg")]
)
def test_the_last_line_tells_how_to_use_a_bundle(made: Path, name: str, sample: str) -> None:
    from compresskit.cli.console import using

    assert using(str(made / name)).endswith(sample if " " not in sample else f"'{sample}'")
    assert using(str(made / "st")) == using("") == ""


def test_what_is_no_model_to_ask_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nor a bundle"):
        compresskit.pipeline(made / "st")
    pipe = compresskit.pipeline(made / "pictures8")
    with pytest.raises(InputError, match="does not exist"):
        pipe("nothing.png")
    with pytest.raises(InputError, match="no samples"):
        pipe([])
    with pytest.raises(UsageError, match="runtime"):
        compresskit.pipeline(made / "pictures8", runtime="onnxrun")


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        (["models.Transformer", "models.Pooling"], ("mean",)),
        (["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"], ("mean",)),
        (["models.Transformer", "models.Pooling", "models.Dense"], ()),
        (["models.Pooling"], ()),
        ([3], ()),
    ],
)
def test_only_known_modules_are_pooled(tmp_path: Path, modules: list[Any], wanted: tuple[str, ...]) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    listed = [{"path": f"{i}_Pooling", "type": f"sentence_transformers.{kind}"} for i, kind in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(listed if modules != [3] else [3]))
    assert usage_of(tmp_path).pooling == wanted


@pytest.mark.parametrize("stored", ["ready numbers", "bytes"])
def test_pictures_are_predicted_only_where_their_normalization_is_known(
    made: Path, tmp_path: Path, stored: str
) -> None:
    from compresskit.cli.console import using

    x = np.random.default_rng(0).integers(0, 255, (16, 3, 8, 8), dtype=np.uint8)
    picture = tmp_path / "picture.png"
    Image.fromarray(x[0].transpose(1, 2, 0)).save(picture)
    np.savez(tmp_path / "d.npz", x=x if stored == "bytes" else (x / 127.5 - 1).astype("f4"), y=np.arange(16) % 3)
    compresskit.run(
        str(made / "m.pt"), [compresskit.method("quantize.rtn", bits=8)], tmp_path / "out", arch=f"{made}/net.py:Net",
        input_shape=(1, 3, 8, 8), eval_data=str(tmp_path / "d.npz"), bench=False,
    )  # fmt: skip
    if stored == "bytes":
        assert read_card(tmp_path / "out").usage.pixels == Pixels()
        assert compresskit.pipeline(tmp_path / "out")(picture) and using(str(tmp_path / "out")).endswith("picture.jpg")
        return
    assert using(str(tmp_path / "out")).endswith("samples.npz")
    with pytest.raises(UsageError, match="how pixels become") as refused:
        compresskit.pipeline(tmp_path / "out")(picture)
    assert "`normalize`" in refused.value.hint
    found = compresskit.pipeline(tmp_path / "out", normalize=".5,.5,.5/.5,.5,.5")(picture)
    ready = compresskit.pipeline(tmp_path / "out")((x[:1] / 127.5 - 1).astype("f4"))[0]
    assert np.allclose([one["score"] for one in found], [one["score"] for one in ready], atol=1e-5)
