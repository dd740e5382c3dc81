"""Commands that ``torchrun`` or ``accelerate launch`` started in several processes: one speaks, the others help it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_main_process() -> bool:
    """True for the process that writes the output and shows the report; for all that no launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def discarded_output(output: Path) -> Iterator[Path]:
    """A place of the output's name that is gone afterwards: a helper has its share in the training, and no result."""
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        yield Path(folder) / output.name
