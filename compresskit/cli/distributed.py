"""Commands that ``torchrun`` or ``accelerate launch`` started in several processes: what they share, and who speaks."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from compresskit.errors import UsageError
from compresskit.ranks import ALONE, GRACE_S, Ranks, joined, launched, rank
from compresskit.stage import Stage

_ONE = "start the command once, without torchrun"


def is_main_process() -> bool:
    """True for the process that writes the output and shows the report; for all that no launcher started."""
    return rank() == 0


def let_the_first_speak() -> None:
    """In the others, wait before an error is reported: where the first has it too, the launcher ends all meanwhile."""
    if launched() > 1 and not is_main_process():
        time.sleep(GRACE_S)


def refuse_several(command: str) -> None:
    """Refuse several processes for a command that is no stage.

    Raises:
        UsageError: Several were launched.
    """
    if launched() > 1:
        raise UsageError(f"{command} cannot be split over {launched()} processes", _ONE)


def sharing(stage: Stage, *, data: bool, limited: bool) -> AbstractContextManager[Ranks]:
    """The processes that share a stage's layers; alone where batches of its training are shared instead.

    Args:
        stage: With its options.
        data: It is given data.
        limited: The user set limits of size or quality.

    Raises:
        UsageError: Several were launched, and the stage can share nothing.
    """
    if launched() == 1 or stage.trains:
        return nullcontext(ALONE)
    if not stage.splits(data=data, limited=limited):
        given = " with `data`" * (data and stage.splits(data=False, limited=False))
        raise UsageError(f"{stage.name()}{given} cannot be split over {launched()} processes", _ONE)
    return joined()
