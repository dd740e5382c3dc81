"""The options that all weight-only methods share, and what they do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.ops.packed.format import BITS
from compresskit.stage import Context
from compresskit.stages.coded import BATCH, CodedWeights
from compresskit.stages.fields import GROUPS, Exclude, GroupSize, Include, Samples, Symmetric, with_bits

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.quantize.calibrated import Method
    from compresskit.ops.quantize.select import Selection

FLOAT = 16
SAMPLES = 256
_EMBEDDING_GROUP = 64


LayerBits = Annotated[
    tuple[str, ...],
    Field(
        description="Bits of single layers: GLOB=BITS or GLOB=BITS/GROUP; 16 bits keep float. Repeatable; the "
        "last match wins."
    ),
]


class WeightOnly(CodedWeights):
    """Weights on a grid of few bits; activations stay floating point."""

    bits: Annotated[Literal[2, 3, 4, 8], Field(description="Bits per weight.")] = 4
    group_size: GroupSize = None
    symmetric: Symmetric = False
    include: Include = ()
    exclude: Exclude = ()
    layer_bits: LayerBits = ()

    @field_validator("layer_bits")
    @classmethod
    def _known_layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_layer_bits(text)
        return value

    @property
    def label(self) -> str:
        """The method with its bits, unless its name says them."""
        return with_bits(self.method, self.bits)

    def selection(self) -> Selection:
        """The options as the algorithm takes them."""
        from compresskit.ops.quantize.select import Selection

        size = self.group_size if self.group_size is not None else (128 if self.bits == 8 else 32)
        layers = layer_bits_of(self.layer_bits)
        return Selection(self.bits, size, self.symmetric, self.include, self.exclude, layer_bits=layers)

    def calibrate(
        self,
        model: Model,
        ctx: Context,
        method: Method,
        *,
        samples: int,
        embedding_group: bool = True,
        batch: int = BATCH,
    ) -> Model:
        """Quantize a module in place with the context's data.

        Args:
            model: Its body is a module.
            ctx: With data; without it every layer is quantized data-free.
            method: The algorithm, with its options.
            samples: Most calibration samples.
            embedding_group: Give embeddings a wider group where the user asked for none.
            batch: Samples worked on at once.

        Raises:
            InputError: The data don't fit the model.
        """
        selection = self.selection()
        if embedding_group and self.group_size is None and self.bits < 8 and selection.format.equal_steps:
            selection = _wider_embeddings(model.module, selection)
        facts, skipped = self.coded(model, ctx, method, selection, samples=samples, batch=batch, ranks=ctx.ranks)
        if ctx.data is None and method.repair:
            facts["notes"] = [
                "the low-rank correction was computed without data, by plain SVD: `data` makes it more accurate"
            ]
        return self.recorded(model, facts, skipped)


class CalibratedWeightOnly(WeightOnly):
    """Weight-only methods that need calibration data."""

    needs: ClassVar = ("calibration",)

    samples: Samples = SAMPLES

    def check_data(self, ctx: Context) -> None:
        """Refuse to run without data.

        Raises:
            UsageError: There is none.
        """
        if ctx.data is None:
            raise UsageError(
                f"quantize `method` {self.method} needs calibration data",
                "give `data` FILE; without data use `method` hqq or rtn",
            )


def layer_bits_of(texts: Sequence[str], known: Sequence[int] = BITS) -> dict[str, tuple[int, int | None]]:
    """Bits and group of each glob, in the order in which they count."""
    layers: dict[str, tuple[int, int | None]] = {}
    for text in texts:
        glob, bits, group = parse_layer_bits(text, known)
        layers.pop(glob, None)  # a glob given again counts where it stands last
        layers[glob] = bits, group
    return layers


def parse_layer_bits(text: str, known: Sequence[int] = BITS) -> tuple[str, int, int | None]:
    """``GLOB=BITS`` or ``GLOB=BITS/GROUP`` in parts; the group is None where none is given.

    Args:
        text: What the user gave.
        known: Bits that a code may have.

    Raises:
        ValueError: It is written otherwise.
    """
    glob, _, value = text.rpartition("=")
    bits, slash, group = value.partition("/")
    numbers = bits.isascii() and bits.isdigit() and (not slash or (group.isascii() and group.isdigit()))
    if not glob or not numbers or int(bits) not in (*known, FLOAT) or (slash and int(group) not in GROUPS):
        allowed = f"BITS one of {', '.join(map(str, (*known, FLOAT)))} and GROUP one of {', '.join(map(str, GROUPS))}"
        raise ValueError(f"'{text}' must be GLOB=BITS or GLOB=BITS/GROUP, {allowed}")
    return glob, int(bits), int(group) if slash else None


def _wider_embeddings(module: nn.Module, selection: Selection) -> Selection:
    """Embeddings in wider groups: what they lose counts least, and they are often half of the file."""
    from torch import nn

    from compresskit.ops.globs import matches

    names = [n for n, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, nn.Embedding)]
    linear = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    own = {n: (selection.bits, _EMBEDDING_GROUP) for n in names if id(module.get_submodule(n).weight) not in linear}
    kept = {n: value for n, value in own.items() if not matches(n, selection.layer_bits)}
    return replace(selection, layer_bits={**kept, **selection.layer_bits})
