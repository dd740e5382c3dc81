"""A teacher that is called as its student is, whatever its inputs are called, and whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.quality.forward import forward
from compresskit.runtimes.base import Session

_ROWS = 256


class SessionTeacher(nn.Module):
    """A file that a runtime runs: its outputs in the file's order, without gradients and without features.

    Args:
        session: An open model.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for inputs by name, each with the batch first.

        Raises:
            InputError: The session refuses the inputs.
        """
        where = next(iter(inputs.values())).device
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
        found = forward(self._session, arrays, _ROWS)
        return tuple(torch.from_numpy(array).to(where) for array in found.values())


class Stand(nn.Module):
    """A teacher in the place of its student: it takes the student's inputs, by name or in order.

    Args:
        teacher: Its layers are trained no further.
        call: Calls it with inputs by its own names.
        names: The student's inputs, in order.
        places: The teacher's inputs, each with the student's that it is; see :func:`places_of`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        call: Callable[[nn.Module, dict[str, Tensor]], Any],
        names: Sequence[str],
        places: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self._call = call
        self._names = tuple(names)
        self._places = dict(places)

    def forward(self, *given: Tensor, **named: Any) -> Any:
        """What the teacher says; no gradient passes."""
        inputs = dict(zip(self._names, given, strict=False)) | named
        with torch.no_grad():
            return self._call(self.teacher, {own: inputs[name] for own, name in self._places.items()})

    def holding(self, teacher: nn.Module) -> Stand:
        """The same place for another module, which is called as this one."""
        return Stand(teacher, self._call, self._names, self._places)

    def train(self, mode: bool = True) -> Stand:
        """A teacher stays in eval mode."""
        return super().train(False)


def places_of(own: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Which of the student's inputs is which of the teacher's.

    Args:
        own: The teacher's inputs.
        names: The student's. Where it has the teacher's names they are the same inputs, and those that only it has are
            left out; else they are the same in order.

    Raises:
        InputError: The teacher has an input that the student lacks.
    """
    if set(own) <= set(names):
        return {name: name for name in own}
    if len(own) == len(names):
        return dict(zip(own, names, strict=True))
    raise InputError(
        f"the teacher takes {', '.join(own)}, the student {', '.join(names)}", "their inputs must be the same"
    )
