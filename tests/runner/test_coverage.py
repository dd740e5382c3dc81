"""What a report says of the layers that a stage changed."""

import pytest

from compresskit.runner.coverage import coverage


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"kind": "Linear", "bits": 4, "group_size": 32}, "Linear 4 bit, group 32"),
        ({"kind": "Linear", "bits": 3, "group_size": 32, "repair": 16}, "Linear 3 bit, group 32, repair 16"),
        ({"kind": "Conv2d", "bits": 8, "group_size": 0}, "Conv2d 8 bit, per channel"),
        ({"kind": "", "bits": 4, "group_size": 32, "shape": [8, 64]}, "matrix 4 bit, group 32"),
        ({"kind": "", "bits": 4, "group_size": 0, "shape": [8, 4, 3, 3]}, "kernel 4 bit, per channel"),
        ({"kind": "Conv2d", "about": "Conv2d, 16 → 8 outputs"}, "Conv2d, 16 → 8 outputs"),
    ],
)
def test_a_layer_in_words(fact: dict, said: str) -> None:
    assert coverage({"layers": {"one": fact}}, {"two": "why"}).done == {"one": said}
