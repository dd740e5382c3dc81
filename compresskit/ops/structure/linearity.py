"""How much of a block's output one linear layer explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.facts.substitute import Fitted
from compresskit.ops.calibration.activation_stream import replaced
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.samples import parted
from compresskit.ops.substitute.candidates import Progress, fitted, mask_of
from compresskit.ops.substitute.recorder import Seen, watching
from compresskit.ops.substitute.sites import Site

KINDS: tuple[Fitted, ...] = ("1x1", "3x3", "linear")


@dataclass
class Explained:
    """Sums over places, in float64, from which the explained share follows.

    Attributes:
        count: Of places.
        total: Of each channel's values.
        squares: Of their squares.
        missed: Squares of what isn't explained, of all channels.
    """

    count: int = 0
    total: Tensor | float = 0.0
    squares: float = 0.0
    missed: float = 0.0

    def add(self, target: Tensor, given: Tensor) -> None:
        """Take in rows ``(places, channels)``, and what should explain them."""
        aim = target.double()
        self.count += len(aim)
        self.total = self.total + aim.sum(0)
        self.squares += float(aim.square().sum())
        self.missed += float((aim - given.double()).square().sum())

    @property
    def r2(self) -> float:
        """1 minus unexplained over total variance; below 0 where the mean would explain more."""
        if not self.count:
            return 0.0
        variance = self.squares - float(torch.as_tensor(self.total).square().sum()) / self.count
        return 1 - self.missed / max(variance, 1e-12 * max(self.squares, 1e-300))


@torch.no_grad()
def linearity(
    module: nn.Module, sites: Sequence[Site], data: CalibrationData, progress: Progress
) -> dict[str, dict[Fitted, float]]:
    """The share of each block's variance (R²) that one layer explains, on samples that it wasn't fitted on.

    The layer is fitted by damped least squares on most of the batches. It is given what the block is given, and the
    block's last activation or normalization, where it has one, is applied to what it gives: it is what ``substitute
    --method collapse`` would put there.

    Args:
        module: In eval mode; not changed.
        sites: Blocks with the kinds of layers to fit.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        R² by the block's name and the kind of layer.
    """
    used, held = parted(data.batches)
    stand_ins = fitted(module, sites, replace(data, batches=used), progress)
    sums = {key: Explained() for key in stand_ins}
    where = {site.name: site for site in sites}
    for batch in held:
        keep, given = mask_of(batch), dict[str, Tensor]()

        def see(name: str, seen: Seen, keep: Tensor | None = keep, given: dict[str, Tensor] = given) -> None:
            given[name] = seen.given
            if where[name].aim == name:
                out = seen.out[0] if isinstance(seen.out, (tuple, list)) else seen.out
                compare(name, out, keep, given)

        def compare(name: str, out: Tensor, keep: Tensor | None, given: dict[str, Tensor]) -> None:
            for kind in where[name].options:
                stand_in = stand_ins[name, kind]
                guess = stand_in.end(stand_in.layer(given[name]))
                sums[name, kind].add(_rows(out, keep), _rows(guess, keep))

        def behind(_layer: Any, _args: Any, out: Tensor, name: str = "", keep: Any = keep, given: Any = given) -> None:
            compare(name, out, keep, given)

        with ExitStack() as stack:
            for site in sites:
                if site.aim != site.name:
                    hook = module.get_submodule(site.aim).register_forward_hook(partial(behind, name=site.name))
                    stack.callback(hook.remove)
            make = partial(_watched, module, where, see)
            stack.enter_context(replaced(module, list(where), make))
            data.forward(module, batch)
    found: dict[str, dict[Fitted, float]] = {}
    for (name, kind), sum_ in sums.items():
        found.setdefault(name, {})[kind] = sum_.r2
    return found


def _watched(module: nn.Module, where: dict[str, Site], see: Callable[[str, Seen], None], name: str) -> Any:
    return watching(module, where[name].place, partial(see, name), name)


def _rows(out: Tensor, keep: Tensor | None) -> Tensor:
    """Values by place: ``(places, channels)``, padding left out."""
    if out.dim() == 4:
        return out.movedim(1, -1).flatten(0, 2)
    if keep is not None and out.shape[:2] == keep.shape:
        return out[keep]
    return out.flatten(0, -2)
