"""The options that all weight-only methods share, and what they do with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compresskit.errors import UsageError
from compresskit.facts.quantize import QuantizeFacts
from compresskit.kinds import QUANTIZE
from compresskit.model import Model
from compresskit.stage import Context, Form, Stage
from compresskit.stages.batches import calibration
from compresskit.stages.fields import GROUPS, Exclude, GroupSize, Include, Samples, Symmetric, with_bits

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.quantize.calibrated import Method
    from compresskit.ops.quantize.select import Selection

BITS = (2, 3, 4, 8)
FLOAT = 16
_BATCH = 32
SAMPLES = 256
_EMBEDDING_GROUP = 64


class WeightOnly(Stage):
    """Weights on a grid of few bits; activations stay floating point."""

    kind: ClassVar = QUANTIZE
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = QuantizeFacts

    bits: Annotated[Literal[2, 3, 4, 8], Field(description="Bits per weight.")] = 4
    group_size: GroupSize = None
    symmetric: Symmetric = False
    include: Include = ()
    exclude: Exclude = ()
    layer_bits: Annotated[
        tuple[str, ...],
        Field(
            description="Bits of single layers: GLOB=BITS or GLOB=BITS/GROUP; 16 bits keep float. Repeatable; the "
            "last match wins."
        ),
    ] = ()

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

    @property
    def promises_speed(self) -> bool:
        """A smaller file alone: what runs faster on these codes depends on runtime, shapes and machine."""
        return False

    def selection(self) -> Selection:
        """The options as the algorithm takes them."""
        from compresskit.ops.quantize.select import Selection

        size = self.group_size if self.group_size is not None else (128 if self.bits == 8 else 32)
        layers: dict[str, tuple[int, int | None]] = {}
        for glob, bits, group in map(parse_layer_bits, self.layer_bits):
            layers.pop(glob, None)  # a glob given again counts where it stands last
            layers[glob] = bits, group
        return Selection(self.bits, size, self.symmetric, self.include, self.exclude, layer_bits=layers)

    def calibrate(
        self,
        model: Model,
        ctx: Context,
        method: Method,
        *,
        samples: int,
        embedding_group: bool = True,
        batch: int = _BATCH,
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
        from compresskit.ops.quantize.calibrated import quantize_calibrated
        from compresskit.stages.batches import batches_of, forward_of

        module = model.module.eval()
        selection = self.selection()
        if embedding_group and self.group_size is None and self.bits < 8:
            selection = _wider_embeddings(module, selection)
        about: dict[str, Any] = {}
        notes: list[str] = []
        batches = []
        if ctx.data is not None:
            count = min(samples, len(ctx.data))
            batches = batches_of(ctx.data, model.card.inputs, batch, count)
            about = calibration(ctx.data, count)
            notes.append(f"calibrated on {count} sample{'s' if count > 1 else ''} of {about['data']}")
            if count == 1:
                notes.append("one calibration sample is not representative: give more")
        forward = forward_of(module, model.card.inputs)
        facts, skipped = quantize_calibrated(module, selection, method, batches, forward, ctx.progress, ctx.ranks)
        facts["notes"] = notes + facts["notes"]
        if about:
            facts["calibration"] = about
        elif method.repair:
            facts["notes"] = [
                "the low-rank correction was computed without data, by plain SVD: `data` makes it more accurate"
            ]
        return self.recorded(model, facts, skipped)

    @classmethod
    def replay(cls, module: nn.Module, facts: QuantizeFacts, tensors: Tensors) -> Tensors:
        """Put empty packed layers in the place of the quantized ones."""
        from compresskit.ops.packed.unpacking import Unpacked
        from compresskit.ops.quantize.weights import replay

        plain = replay(module, facts)
        return Unpacked(tensors, plain) if plain else tensors


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


def parse_layer_bits(text: str) -> tuple[str, int, int | None]:
    """``GLOB=BITS`` or ``GLOB=BITS/GROUP`` in parts; the group is None where none is given.

    Raises:
        ValueError: It is written otherwise.
    """
    glob, _, value = text.rpartition("=")
    bits, slash, group = value.partition("/")
    numbers = bits.isascii() and bits.isdigit() and (not slash or (group.isascii() and group.isdigit()))
    if not glob or not numbers or int(bits) not in (*BITS, FLOAT) or (slash and int(group) not in GROUPS):
        allowed = f"BITS one of 2, 3, 4, 8, 16 and GROUP one of {', '.join(map(str, GROUPS))}"
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
