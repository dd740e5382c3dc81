"""Small stand-ins for the files that the commands of the documents name, all in one folder."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from lm_folders import make_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from predict_material import classifier, pictures, sentences, tokenizer

ROOT = Path(__file__).resolve().parents[2]

NET = """\
from cifar_resnet import ResNet


def Net():
    return ResNet(2, width=8)


def Small():
    return ResNet(1, width=4)


Large = Net
"""
RECIPE = "data: train.npz\neval-data: test.npz\nsteps:\n  - quantize.rtn: {bits: 8}\n"
SENTENCES = ["the cat sat on the mat", "a dog ran far away", "the dog sat", "a cat ran", "the mat", "far away a dog"]
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def images(folder: Path) -> None:
    """Networks of images, their samples, and bundles and files made of them."""
    from compresskit import bench, load, method, run

    (folder / "examples").mkdir()
    for place in (folder, folder / "examples"):
        shutil.copy(ROOT / "examples" / "cifar_resnet.py", place)
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    import cifar_resnet

    torch.manual_seed(0)
    for name, module in {
        "model.pt": cifar_resnet.ResNet(2, width=8), "resnet20.th": cifar_resnet.resnet20(),
        "small.pt": cifar_resnet.ResNet(1, width=4),
    }.items():  # fmt: skip
        torch.save(module.state_dict(), folder / name)
    for name in ("digits.pt", "large.pt", "teacher.pt", "net.pt", "repvgg.pt"):
        shutil.copy(folder / "model.pt", folder / name)
    shutil.copy(folder / "small.pt", folder / "student.pt")
    draw = np.random.default_rng(0)
    net = cifar_resnet.ResNet(2, width=8)
    net.load_state_dict(torch.load(folder / "model.pt"))
    for name, count in (("train.npz", 160), ("test.npz", 64), ("other.npz", 64)):
        x = draw.normal(size=(count, 3, 32, 32)).astype(np.float32)
        with torch.no_grad():
            np.savez(folder / name, x=x, y=net.eval()(torch.from_numpy(x)).argmax(1).numpy())
    model = load(folder / "model.pt", arch=f"{folder}/net.py:Net", input_shape=(1, 3, 32, 32))
    run(model, [method("quantize.rtn", bits=8)], folder / "out", bench=False)
    for bundle in ("small", "edge8", "r20", "mcu"):
        shutil.copytree(folder / "out", folder / bundle)
    for name in ("model.onnx", "small.onnx", "a.onnx", "b.onnx", "c.onnx"):
        shutil.copy(folder / "out" / "model.onnx", folder / name)
    report = bench([folder / "model.onnx", folder / "small.onnx"], processes=2)
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")


def texts(folder: Path) -> None:
    """Transformers of sentences and of language, and their texts."""
    for name in ("minilm", "all-MiniLM-L6-v2"):
        sentences(folder / name, layers=5, width=128)
    (folder / "lines.txt").write_text("\n".join(SENTENCES * 8), encoding="utf-8")
    for name in ("train.txt", "test.txt", "sentences.txt"):
        shutil.copy(folder / "lines.txt", folder / name)
    draw = np.random.default_rng(0)
    for name in ("pairs.csv", "train.csv", "test.csv"):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence1", "sentence2", "score"])
            for _ in range(48):
                one, two = draw.choice(len(SENTENCES), 2)
                rows.writerow([SENTENCES[one], SENTENCES[two], round(float(draw.uniform(0, 5)), 2)])


def language(folder: Path) -> None:
    """A causal language model, ``my-model``, a mixture, ``my-moe``, and an encoder-decoder, ``t5-small``."""
    import transformers

    make_folder(folder, "llama").rename(folder / "my-model")
    make_folder(folder, "mixtral").rename(folder / "my-moe")
    place = folder / "my-model" / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "chat_template": CHAT}))
    config = transformers.T5Config(
        vocab_size=14, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=1
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "t5-small")
    tokenizer(folder / "t5-small")


def answers(folder: Path) -> None:
    """What ``predict`` is shown with: models of sentences, classes of texts, pictures, rows and arrays."""
    from compresskit.exporter.checked import export_checked
    from compresskit.model import InputSpec

    sentences(folder / "all-MiniLM-L6-v2")
    classifier(folder / "review-classifier")
    pictures(folder)
    (folder / "m.pt").rename(folder / "animals.pt")
    shutil.copy(folder / "pictures" / "cat" / "0.png", folder / "cat.png")
    shutil.copytree(folder / "pictures" / "dog", folder / "holidays")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    for name in ("rows.onnx", "any.onnx"):
        export_checked(torch.nn.Linear(3, 2), (InputSpec("x", "float32", ("batch", 3)),), folder / name)
    (folder / "table.csv").write_text("a,b,c\n1,2,3\n4,5,6\n", encoding="utf-8")
    np.savez(folder / "samples.npz", x=np.ones((2, 3), np.float32))


MAKERS = (images, texts, language)
