"""Child processes that end with the tests, also where those are killed and clean up nothing."""

from __future__ import annotations

import shutil
import sys


def with_us() -> list[str]:
    """Words before those of a command that would run on for ever, or for long.

    On Linux the kernel then kills it once the process of the tests is gone. Elsewhere there is no such call, and the
    list is empty: a test's own cleaning up is what there is.
    """
    found = shutil.which("setpriv") if sys.platform == "linux" else None
    return [found, "--pdeathsig", "KILL", "--"] if found else []
