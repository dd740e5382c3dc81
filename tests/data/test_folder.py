"""Samples from a folder of class folders. What needs Pillow is skipped where it isn't installed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from compresskit.data import open_source
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec

SPEC = (InputSpec("pixels", "float32", ("batch", 3, 8, 8)),)


def write_ppm(path, value, height=8, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 %d %d 255\n" % (width, height) + bytes(value) * (height * width))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    write_ppm(root / "b_dog" / "2.ppm", (0, 255, 0))
    write_ppm(root / "b_dog" / "1.PPM", (255, 0, 0))
    write_ppm(root / "a_cat" / "9.ppm", (0, 0, 255))
    (root / ".hidden").mkdir()
    (root / "a_cat" / "notes.txt").write_text("not an image")
    return root


def test_without_pillow_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MachineError) as caught:
        open_source(str(folder))
    assert caught.value.hint == "pip install 'compresskit[images]'"


def test_the_data_layer_imports_no_heavy_library():
    code = (
        "import sys, compresskit.data, compresskit.quality;"
        "print([m for m in ('torch','tokenizers','PIL','onnx','onnxruntime','transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("specs", [(), SPEC])
def test_classes_and_files_in_order(pillow, folder, specs):
    source = open_source(str(folder), inputs=specs)
    assert (source.kind, source.labelled, len(source), source.classes) == ("images", True, 3, ["a_cat", "b_dog"])
    (batch,) = source.batches(8)
    (name,) = batch.inputs
    assert name == ("pixels" if specs else "x")
    assert batch.targets.tolist() == [0, 1, 1]
    assert batch.inputs[name].shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(batch.inputs[name][:, :, 0, 0], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def test_normalize_and_grey(pillow, folder):
    got = next(open_source(str(folder), normalize=".5,.5,.5/.5,.5,.5").batches(1)).inputs["x"]
    np.testing.assert_allclose(got[0, :, 0, 0], [-1, -1, 1], atol=1e-6)
    grey = open_source(str(folder), inputs=(InputSpec("x", "float32", ("batch", 1, 8, 8)),))
    assert next(grey.batches(1)).inputs["x"].shape == (1, 1, 8, 8)
    with pytest.raises(UsageError, match="1 channels"):
        open_source(str(folder), normalize=".5/.5")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 8), (9, 20), (4, 5), (1, 100)])
def test_other_sizes_are_scaled_and_cut(pillow, folder, height, width):
    write_ppm(folder / "a_cat" / "10.ppm", (255, 255, 255), height, width)
    first = next(open_source(str(folder), inputs=SPEC).batches(1)).inputs["pixels"]
    assert first.shape == (1, 3, 8, 8)
    assert (first == 1).all()


def test_channels_last_model(pillow, folder):
    source = open_source(str(folder), inputs=(InputSpec("x", "float32", ("batch", 8, 8, 3)),))
    assert next(source.batches(2)).inputs["x"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize("data", [b"", b"P6 8 8 255\n123", b"\x89PNG\r\n\x1a\n", b"hello", b"P6 90000 90000 255\n"])
def test_damaged_images_are_named(pillow, folder, data):
    (folder / "b_dog" / "bad.png").write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.png"):
        list(open_source(str(folder), inputs=SPEC).batches(8))


def test_no_classes_or_no_images(pillow, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        open_source(str(tmp_path / "empty"))
    (folder / "c_none").mkdir()
    with pytest.raises(InputError, match="c_none holds no images"):
        open_source(str(folder))


def test_a_model_that_takes_no_image(pillow, folder):
    with pytest.raises(InputError, match="input_ids"):
        open_source(str(folder), inputs=(InputSpec("input_ids", "int64", ("batch", "sequence")),))


def test_fingerprint_has_no_paths(pillow, folder, tmp_path):
    before = open_source(str(folder)).fingerprint()
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_source(str(moved)).fingerprint() == before
    write_ppm(moved / "a_cat" / "9.ppm", (0, 0, 254))
    assert open_source(str(moved)).fingerprint() != before
