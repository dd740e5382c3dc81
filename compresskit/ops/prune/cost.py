"""What a model costs with narrower groups, reckoned from the widths alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from compresskit.ops.prune.graph import Group, axis_size

Widths = Mapping[str, int]
"""Group name to the number of units that stay; groups that aren't in it stay whole."""


class Cost:
    """MACs, parameters or channels as a function of widths.

    Args:
        module: Before the cut.
        groups: Those that may get narrower.
        macs: By layer, as :func:`compresskit.ops.macs.count_macs` gives them; None to count parameters.
        base: What a share of 1 is; None for the module as it stands.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[Group], macs: Mapping[str, int] | None, base: float | None = None
    ) -> None:
        self._sides: dict[str, dict[str, list[tuple[str, float]]]] = {}
        for group in groups:
            for member in group.members:
                size = axis_size(module.get_submodule(member.layer), member.axis)
                part = sum(map(len, member.places)) / size / group.units
                sides = self._sides.setdefault(member.layer, {})
                sides.setdefault("in" if member.axis == "in" else "out", []).append((group.name, part))
        self._units = {group.name: group.units for group in groups}
        both = ("out", "in")
        counted = _parameters(module) if macs is None else ((name, float(n), both) for name, n in macs.items())
        self._terms: list[tuple[str, float, tuple[str, ...]]] = list(counted)
        self.base = self.total({}) if base is None else base

    def total(self, widths: Widths) -> float:
        """MACs or parameters at these widths."""
        gone = {name: units - widths.get(name, units) for name, units in self._units.items()}
        found = 0.0
        for layer, count, axes in self._terms:
            sides = self._sides.get(layer, {})
            for axis in axes:
                count *= 1 - sum(gone[name] * part for name, part in sides.get(axis, ()))
            found += count
        return found

    def share(self, widths: Widths) -> float:
        """The same as a share of the original's."""
        return self.total(widths) / self.base if self.base else 1.0


class Channels(Cost):
    """Channels of all groups together.

    Args:
        groups: Those that may get narrower.
        base: What a share of 1 is; None for the groups as they stand.
    """

    def __init__(self, groups: Sequence[Group], base: float | None = None) -> None:
        self._units = {group.name: group.units for group in groups}
        self._per = {group.name: group.per_unit for group in groups}
        self.base = self.total({}) if base is None else base

    def total(self, widths: Widths) -> float:
        """Channels at these widths."""
        return float(sum(widths.get(name, units) * self._per[name] for name, units in self._units.items()))


def _parameters(module: nn.Module) -> Iterable[tuple[str, float, tuple[str, ...]]]:
    seen: set[int] = set()
    for name, layer in module.named_modules():
        for leaf, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                both = leaf == "weight" and isinstance(layer, (nn.Linear, _ConvNd))
                yield name, float(parameter.numel()), ("out", "in") if both else ("out",)
