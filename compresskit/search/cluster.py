"""Workers of a search on a Ray cluster that is there already."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compresskit.errors import MachineError, UsageError, missing_extra
from compresskit.exporter.quiet import first_line

_PATIENCE_S = 5.0


@contextmanager
def workers_on_ray(place: str, count: int | None, cache: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Let the nodes of a cluster take part in a search until the block ends.

    Each worker is a task of Ray that joins the search as ``compress --join`` does. It needs compresskit, and model and
    data under the same paths. The cluster is that of ``RAY_ADDRESS``, or the one that runs on this machine.

    Args:
        place: Where the search is kept; the block has made it.
        count: How many workers; None is one for each node.
        cache: Where the steps of candidates are kept.
        tell: Shows a line.

    Raises:
        MachineError: Ray isn't installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.rpartition("/")[2], int(port)), _PATIENCE_S).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of any kind: ConnectionError, or one of gRPC
        raise MachineError(f"no Ray cluster answers: {first_line(error)}", "start one: ray start --head") from error
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    work = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_join)
    wanted = count or len(nodes)
    tell(f"{wanted} worker{'s' * (wanted != 1)} on {len(nodes)} node{'s' * (len(nodes) != 1)} of Ray take part")
    tasks = [work.remote(place, str(Path.cwd()), str(cache)) for _ in range(wanted)]
    try:
        yield
    finally:
        for task in tasks:
            _end(ray, task, tell)
        ray.shutdown()


def _end(ray: Any, task: Any, tell: Callable[[str], None]) -> None:
    """End a worker; one that failed tells why. What it was trying is lost, as the search is over."""
    ready, _ = ray.wait([task], timeout=0)
    if not ready:
        ray.cancel(task, force=True)
        return
    try:
        count = ray.get(task)
        tell(f"a worker on Ray tried {count} candidate{'s' * (count != 1)}")
    except Exception as error:  # whatever ended it, on another machine
        cause = getattr(error, "cause", None) or error
        tell(f"a worker on Ray failed: {first_line(cause)}")


def _join(place: str, folder: str, cache: str) -> int:
    """What a task does; its folder is that of the command where the node has it."""
    from compresskit.runner.cache import Cache
    from compresskit.search.compress import Showing, join

    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not on this node", "share it, or give absolute paths")
    os.chdir(folder)
    return join(place, Cache(Path(cache)), Showing())
