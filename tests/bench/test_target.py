import platform

import numpy as np
import pytest

from compresskit.benchmark import target
from compresskit.errors import UsageError


@pytest.mark.parametrize("name", target.names())
def test_no_target_saturates_with_its_own_form(name):
    """The largest pair of products of each target's own form fits what the target adds it in."""
    found = target.get(name)
    activation = np.iinfo(found.int8.activation)
    weight = 64 if found.int8.reduce_range else 128
    largest = 2 * max(abs(int(activation.min)), int(activation.max)) * weight
    assert not found.saturates or largest <= np.iinfo(np.int16).max
    assert found.name == name and found.title
    assert found.int8.options().keys() == {"activation", "weight", "reduce_range"}
    assert all(size & (size - 1) == 0 for size in found.group_sizes)


def test_only_x86_without_vnni_saturates():
    assert [name for name in target.names() if target.get(name).saturates] == ["x86-avx2"]


@pytest.mark.parametrize(
    ("machine", "vnni", "expected"),
    [
        ("x86_64", True, "x86-vnni"),
        ("x86_64", False, "x86-avx2"),
        ("AMD64", True, "x86-vnni"),
        ("AMD64", False, "x86-avx2"),
        ("i686", False, "x86-avx2"),
        ("arm64", False, "arm64"),
        ("ARM64", False, "arm64"),
        ("aarch64", False, "arm64"),
        ("riscv64", False, "arm64"),
        ("", False, "arm64"),
    ],
)
def test_this_machine_by_architecture(monkeypatch, machine, vnni, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(target, "has_vnni", lambda: vnni)
    assert target.here().name == expected
    assert target.get() is target.get("") is target.get(None) is target.here()


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UsageError, match="x86-avx") as caught:
        target.get("x86-avx")
    assert "did you mean x86-avx2" in caught.value.hint
