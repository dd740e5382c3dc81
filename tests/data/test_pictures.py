"""Pictures of other pixels than 8 bit: the right values, or a refusal; never all white or all black."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.data import open_source
from compresskit.errors import InputError
from compresskit.model import InputSpec

image = pytest.importorskip("PIL.Image")
LEVELS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def spec(channels):
    return (InputSpec("x", "float32", ("batch", channels, 8, 8)),)


def read(tmp_path, picture, name, channels=1, **options):
    path = tmp_path / "set" / "class" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    (batch,) = open_source(str(tmp_path / "set"), inputs=spec(channels)).batches(1)
    return batch.inputs["x"][0] * 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_become_eight(tmp_path, name, channels):
    got = read(tmp_path, image.fromarray(LEVELS.astype(np.uint16) * 257), name, channels)
    np.testing.assert_allclose(got, np.broadcast_to(LEVELS, (channels, 8, 8)), atol=1e-3)


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    big = image.frombytes("I;16B", (8, 8), (LEVELS.astype(">u2") * 257).tobytes())
    np.testing.assert_allclose(read(tmp_path, big, "a.tif")[0], LEVELS, atol=1e-3)


@pytest.mark.parametrize(
    "picture",
    [
        image.fromarray(LEVELS.astype(np.float32) / 255),
        image.fromarray(LEVELS.astype(np.float32)),
        image.fromarray(LEVELS.astype(np.int32) * 257),
        image.fromarray(LEVELS.astype(np.int32)),
    ],
)
def test_pixels_of_no_known_range_are_refused(tmp_path, picture):
    with pytest.raises(InputError, match="range") as caught:
        read(tmp_path, picture, "a.tif")
    assert "16 bit" in caught.value.hint


def test_sixteen_bits_with_white_as_zero_are_refused(tmp_path):
    with pytest.raises(InputError, match="range"):
        read(tmp_path, image.fromarray(LEVELS.astype(np.uint16) * 257), "a.tif", tiffinfo={262: 0})


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "L", "RGB"])
def test_the_other_modes_keep_their_values(tmp_path, mode):
    black_and_white = np.where(LEVELS > 127, 255, 0).astype(np.uint8)
    picture = image.fromarray(black_and_white).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    got = read(tmp_path, picture, "a.tif" if mode == "CMYK" else "a.png", 3)
    np.testing.assert_allclose(got, np.broadcast_to(black_and_white, (3, 8, 8)), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint16", "int32"])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 64)])
def test_arrays_that_look_like_pixels_get_a_note(tmp_path, dtype, shape):
    np.savez(tmp_path / "x.npz", x=np.tile(LEVELS, (4, 1, 1)).reshape(shape).astype(dtype))
    (note,) = open_source(str(tmp_path / "x.npz"), inputs=(InputSpec("x", "float32", ("batch", *shape[1:])),)).notes
    assert "from 0 to 252" in note and "uint8" in note


@pytest.mark.parametrize(
    ("array", "normalize", "noted"),
    [
        (LEVELS, None, False),
        (LEVELS / np.float32(255), None, False),
        (LEVELS.astype("float32") - 128, None, False),
        (LEVELS.astype("float32"), ".5/.5", True),
        (LEVELS.astype("float32"), "127/60", False),
    ],
)
def test_other_arrays_get_none(tmp_path, array, normalize, noted):
    np.savez(tmp_path / "x.npz", x=np.tile(array, (4, 1, 1, 1)))
    assert bool(open_source(str(tmp_path / "x.npz"), inputs=spec(1), normalize=normalize).notes) == noted
