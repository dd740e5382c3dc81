"""How large a model's file would be in fewer bits, reckoned from shapes alone; no torch.

Tensors are counted exactly: codes, scales and zero points of the groups that ``quantize`` would choose, and all else as
it stays. What operators and names take in the file is estimated from files that were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from compresskit.ops.packed.layout import Grid

Kind = Literal["conv", "linear", "embedding"]
Form = Literal["float", "int8", "weights8", "weights4"]
_OPERATORS: dict[Form, dict[Kind, int]] = {
    "float": {"conv": 300, "linear": 165, "embedding": 120},
    "int8": {"conv": 680, "linear": 600, "embedding": 450},
    "weights8": {"conv": 700, "linear": 280, "embedding": 750},
    "weights4": {"conv": 900, "linear": 280, "embedding": 1350},
}
"""Bytes of a layer's operators and names in an ONNX file, its activation and normalization included."""
_FRAME = 60
"""Bytes of an ONNX file besides layers: inputs, outputs, versions."""
_INT8_ROW = 5
"""Bytes of an output channel in static int8 beside its codes: a float32 scale and a zero point."""
_TABLE_ROW = 4
"""Bytes of an embedding's row beside its codes: a float32 scale."""
_TABLE_COLUMNS = 8
"""Narrower embeddings stay in float."""


@dataclass(frozen=True)
class Weight:
    """A layer's weight.

    Attributes:
        name: Of the layer.
        kind: What it is.
        shape: Outputs first.
        itemsize: Bytes of a number as it is stored.
        macs: Of one sample; None where that isn't known.
        shared: An embedding looks its rows up, and another layer multiplies by it.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    itemsize: int
    macs: int | None = None
    shared: bool = False

    @property
    def bytes(self) -> int:
        """As it is stored."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Sized:
    """An estimate.

    Attributes:
        bytes: Of the file.
        layers: How many layers it has in few bits; a shared weight counts once.
        macs: Multiply-accumulates of one sample that work on codes; None where that isn't known.
    """

    bytes: int
    layers: int
    macs: int | None


@dataclass(frozen=True)
class Inventory:
    """What a model's file is made of.

    Attributes:
        weights: Those that could get fewer bits; a shared one once.
        rest: Bytes of everything else.
        folded: Of these, what is gone once batch normalizations have become part of convolutions.
        file: ``onnx`` for one to be written, ``written`` for one that is there (``rest`` holds its operators),
            ``tensors`` for bare tensors.
        attention: Bytes of the operators of attention, besides its Linear layers.
    """

    weights: tuple[Weight, ...]
    rest: int
    folded: int = 0
    file: Literal["onnx", "written", "tensors"] = "onnx"
    attention: int = 0

    def as_float(self) -> Sized:
        """As it is, or as ``export`` writes it."""
        size = self.rest + sum(w.bytes for w in self.weights)
        return Sized(size - (self.folded if self.file == "onnx" else 0) + self._operators("float", ()), 0, 0)

    def packed(self, grids: Mapping[str, Grid]) -> Sized:
        """Weights as codes in groups, activations in floating point: ``quantize`` without data.

        Args:
            grids: By layer; the others stay as they are.
        """
        form: Form = "weights8" if any(grid.bits == 8 for grid in grids.values()) else "weights4"
        size = self.rest + sum(grids[w.name].nbytes(w.shape) if w.name in grids else w.bytes for w in self.weights)
        done = [w for w in self.weights if w.name in grids]
        # MatMulNBits multiplies by the codes; a convolution's weight is unpacked when the file is loaded.
        macs = _sum(w.macs for w in done if w.kind == "linear")
        return Sized(size + self._operators(form, grids), len(done), macs)

    def eight(self, kinds: Iterable[Kind] = ("conv", "linear", "embedding")) -> Sized:
        """Weights and activations in 8 bit: a scale for each output channel, and for each row of a table."""
        size, done, wanted = self.rest - self.folded, [], set(kinds)
        for w in self.weights:
            columns = math.prod(w.shape[1:])
            table = w.kind == "embedding"
            if w.kind not in wanted or (table and columns < _TABLE_COLUMNS):
                size += w.bytes
                continue
            # A product with the rows of a table has a transposed copy of it.
            size += (1 + w.shared) * w.shape[0] * (columns + (_TABLE_ROW if table else _INT8_ROW))
            done.append(w)
        macs = _sum(w.macs for w in done if w.kind != "embedding")
        return Sized(size + self._operators("int8", [w.name for w in done]), len(done), macs)

    def _operators(self, form: Form, done: Iterable[str]) -> int:
        """Bytes of what is in a file besides tensors."""
        names, costs, plain = set(done), _OPERATORS[form], _OPERATORS["float"]
        if self.file == "tensors":
            return 0
        if self.file == "written":
            return sum(costs[w.kind] - plain[w.kind] for w in self.weights if w.name in names)
        used = ((w, costs if w.name in names else plain) for w in self.weights)
        return _FRAME + self.attention + sum(cost[w.kind] + (cost["embedding"] if w.shared else 0) for w, cost in used)


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(n or 0 for n in known)
