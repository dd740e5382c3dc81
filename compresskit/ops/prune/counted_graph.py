"""torch-pruning's graph with a count of what it does: some walks would never end.

A clock would end them too, but earlier on a busy machine, and then another model would come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

EFFORT = 4_000_000_000
"""Comparisons that all walks of a model may take: about two minutes."""
_LAYER = 8
"""A single layer may take this part of them."""
_INDEX, _WIDTH = 4, 20
"""What a mapped channel, and the number of a layer's channels, take as long as: so many comparisons."""


class OutOfSteps(Exception):
    """Raised by a walk that took as many steps as it may."""


class Effort:
    """What may still be done.

    Attributes:
        left: Comparisons of the whole model.
        layer: Of the layer at hand.
    """

    def __init__(self, total: int) -> None:
        self.left = self.layer = total
        self._most = total // _LAYER

    def next_layer(self) -> None:
        """A new layer has its part of what was given for all."""
        self.layer = self._most

    def spend(self, steps: int) -> None:
        """Count steps.

        Raises:
            OutOfSteps: There were fewer left.
        """
        self.left -= steps
        self.layer -= steps
        if min(self.left, self.layer) < 0:
            raise OutOfSteps


def counted_graph(effort: Effort) -> Any:
    """An empty ``DependencyGraph`` that spends effort as it is built and walked.

    Its methods raise :class:`OutOfSteps` once that is gone.
    """
    import torch_pruning as tp

    class Counted(tp.DependencyGraph):  # type: ignore[misc]
        followed = 0

        def _build_dependency(self, module2node: Any) -> None:
            super()._build_dependency(module2node)
            for node in module2node.values():
                for edge in node.dependencies:
                    edge.is_triggered_by = partial(self._followed, edge)
                    edge.index_mapping = _Mappings(edge.index_mapping, effort)

        def _followed(self, edge: Any, cut: Callable[..., Any]) -> bool:
            """Whether a cut goes on along an edge: then it is compared with all that were followed before."""
            if cut != edge.trigger:
                return False
            self.followed += 1
            effort.spend(self.followed)
            return True

        def get_pruning_group(self, *args: Any, **kwargs: Any) -> Any:
            self.followed = 0
            return super().get_pruning_group(*args, **kwargs)

        def get_out_channels(self, layer: Any) -> Any:
            effort.spend(_WIDTH)
            return super().get_out_channels(layer)

        def get_in_channels(self, layer: Any) -> Any:
            effort.spend(_WIDTH)
            return super().get_in_channels(layer)

    return Counted()


class _Mappings(list[Any]):
    """From the channels of one layer to those of the next; the graph puts functions into its two places."""

    def __init__(self, mappings: list[Any], effort: Effort) -> None:
        super().__init__(mappings)
        self._effort = effort

    def __iter__(self) -> Iterator[Any]:
        for mapping in super().__iter__():
            yield None if mapping is None else partial(self._mapped, mapping)

    def _mapped(self, mapping: Callable[[list[Any]], list[Any]], channels: list[Any]) -> list[Any]:
        found = mapping(channels)
        self._effort.spend(_INDEX * (len(channels) + len(found)))
        return found
