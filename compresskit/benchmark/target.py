"""The CPU or GPU that a file is made for: which 8-bit signedness it multiplies fast and exactly, which groups are fast.

x86 multiplies unsigned activations by signed weights. With VNNI the products are summed in 32 bit. Without it the
instruction (``vpmaddubsw``) adds each pair of products in 16 bit and saturates; with weights of 7 bits a pair reaches
2 · 255 · 64 = 32640 at most, which fits. Arm and GPUs multiply signed by signed, and sum in 32 bit. A file made for
them can saturate on an x86 without VNNI too: there onnxruntime turns signed activations into unsigned ones.
"""

from __future__ import annotations

import difflib
import platform
from dataclasses import asdict, dataclass
from typing import Any, Literal

from compresskit.benchmark.machine import has_vnni
from compresskit.errors import UsageError

Name = Literal["x86-vnni", "x86-avx2", "arm64", "gpu"]
_X86 = ("x86_64", "amd64", "x86", "i386", "i486", "i586", "i686")


@dataclass(frozen=True)
class Int8:
    """How static int8 is written for a target.

    Attributes:
        activation: Type of activations.
        weight: Type of weights.
        reduce_range: Weights of 7 bits, so that no pair of products leaves 16 bit.
    """

    activation: Literal["uint8", "int8"]
    weight: Literal["int8", "uint8"]
    reduce_range: bool

    def options(self) -> dict[str, Any]:
        """The fields by name, as :class:`compresskit.exporter.int8.Int8Settings` has them."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """What a file is made for.

    Attributes:
        name: One of :func:`names`.
        title: In words.
        int8: The fast and exact form of static int8.
        saturates: True where products of uint8 activations and full int8 weights are clipped to 16 bit, in pairs.
        group_sizes: Groups of packed weights that its kernels take fast, the smallest (most accurate) first.
    """

    name: Name
    title: str
    int8: Int8
    saturates: bool = False
    group_sizes: tuple[int, ...] = (32, 64, 128)


_TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-vnni", "x86 with VNNI", Int8("uint8", "int8", reduce_range=False)),
        Target("x86-avx2", "x86 without VNNI", Int8("uint8", "int8", reduce_range=True), saturates=True),
        Target("arm64", "Arm, 64 bit", Int8("int8", "int8", reduce_range=False)),
        Target("gpu", "a GPU", Int8("int8", "int8", reduce_range=False)),
    )
}


def names() -> list[str]:
    """The names that :func:`get` knows."""
    return list(_TARGETS)


def get(name: str | None = None) -> Target:
    """A target by name; None or an empty name is this machine's.

    Raises:
        UsageError: No target has this name.
    """
    if not name:
        return here()
    if name not in _TARGETS:
        near = difflib.get_close_matches(name, _TARGETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no target '{name}'", f"{hint}available: {', '.join(_TARGETS)}")
    return _TARGETS[name]


def here() -> Target:
    """This machine's CPU.

    An x86 that doesn't say whether it has VNNI counts as one without: its files are right on both. A processor that is
    neither x86 nor Arm takes Arm's form, signed by signed, which no kernel saturates.
    """
    if platform.machine().lower() in _X86:
        return _TARGETS["x86-vnni" if has_vnni() else "x86-avx2"]
    return _TARGETS["arm64"]
