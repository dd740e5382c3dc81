"""The adapters that PEFT trains: ``lora.lora``, ``rslora``, ``dora``, ``pissa``, ``vera`` and ``ia3``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError, listing
from compresskit.stages.lora_base import Rank, WithPeft

if TYPE_CHECKING:
    from torch import nn

Dropout = Annotated[float, Field(ge=0, lt=1, description="Dropout on the input of the adapters in training.")]


class _LowRank(WithPeft):
    """Two thin matrices beside each layer."""

    rank: Rank = 8
    alpha: Annotated[
        float | None,
        Field(gt=0, description="Scaling: the adapter's output is multiplied by alpha / rank. (twice the rank)"),
    ] = None
    adapter_dropout: Dropout = 0.0

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {"rank": self.rank, "alpha": self.alpha or 2 * self.rank, "dropout": self.adapter_dropout}

    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """See :class:`WithPeft`."""
        from compresskit.ops.lora.targets import find_targets, low_rank

        return find_targets(module, self.targets, low_rank, rank=self.rank)


class LoraLora(_LowRank):
    """LoRA: train two low-rank matrices beside each Linear and Conv layer. The weights do not change.

    Trains on labels, scored sentence pairs, or a language model's own text. On a model quantized by compresskit the
    codes do not change (QLoRA). The adapters stay separate, or are merged with `merge`.
    """

    method: ClassVar[str] = "lora"
    adapter_kind: ClassVar = "lora"

    init: Annotated[
        Literal["kaiming", "gaussian"],
        Field(description="Initialization of the first matrix; the second one starts at zero."),
    ] = "kaiming"

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {**super().sizes(), "init": self.init}


class LoraRslora(_LowRank):
    """rsLoRA: LoRA scaled by alpha / √rank, for high ranks, which plain LoRA trains too slowly."""

    method: ClassVar[str] = "rslora"
    adapter_kind: ClassVar = "rslora"

    rank: Rank = 32
    alpha: Annotated[
        float | None,
        Field(
            gt=0,
            description="Scaling: the adapter's output is multiplied by alpha / √rank. (twice the root of the rank)",
        ),
    ] = None

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {**super().sizes(), "alpha": self.alpha or 2 * self.rank**0.5}


class LoraDora(_LowRank):
    """DoRA: LoRA with a separately trained norm for each row of the weights. Slower, often more accurate."""

    method: ClassVar[str] = "dora"
    adapter_kind: ClassVar = "dora"

    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """See :class:`WithPeft`."""
        from compresskit.ops.lora.targets import find_targets, floats_only

        return find_targets(module, self.targets, floats_only, rank=self.rank)


class LoraPissa(_LowRank):
    """PiSSA: LoRA that starts from the largest singular values of each Linear layer, which speeds up training.

    The stored adapter has twice the rank and belongs to the unchanged weights.
    """

    method: ClassVar[str] = "pissa"
    adapter_kind: ClassVar = "pissa"

    alpha: Annotated[
        float | None, Field(gt=0, description="Scaling: the adapter's output is multiplied by alpha / rank. (the rank)")
    ] = None

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {**super().sizes(), "alpha": self.alpha or self.rank}

    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """See :class:`WithPeft`."""
        from compresskit.ops.lora.adapter import tied_with
        from compresskit.ops.lora.targets import find_targets, linear_only

        names, skipped = find_targets(module, self.targets, linear_only, rank=self.rank)
        for name in names:
            if shared := tied_with(module, name):
                raise UsageError(f"'{name}' shares its weight with {listing(shared)}: pissa would change both")
        return names, skipped


class LoraVera(WithPeft):
    """VeRA: two trained vectors per Linear layer between shared random matrices. The fewest trained parameters."""

    method: ClassVar[str] = "vera"
    adapter_kind: ClassVar = "vera"
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-1, "adamw": 5e-3}

    rank: Annotated[int, Field(ge=1, le=4096, description="Rank of the shared random matrices.")] = 64
    adapter_dropout: Dropout = 0.0
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 5e-3, sgd: 0.1)")
    ] = None

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {"rank": self.rank, "dropout": self.adapter_dropout}

    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """See :class:`WithPeft`."""
        from compresskit.ops.lora.targets import find_targets, linear_only

        return find_targets(module, self.targets, linear_only)


class LoraIa3(WithPeft):
    """IA³: a trained factor for each output of each layer. Once merged, it adds no cost."""

    method: ClassVar[str] = "ia3"
    adapter_kind: ClassVar = "ia3"
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-1, "adamw": 5e-3}

    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 5e-3, sgd: 0.1)")
    ] = None

    def sizes(self) -> dict[str, Any]:
        """See :class:`WithPeft`."""
        return {}

    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """See :class:`WithPeft`."""
        from compresskit.ops.lora.targets import find_targets, no_conv1d

        return find_targets(module, self.targets, no_conv1d)
