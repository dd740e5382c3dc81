"""``compresskit cache clear``."""

from __future__ import annotations

from compresskit.cli import options as shared


def command(cache: shared.CacheFolder = None, quiet: shared.Quiet = False) -> None:
    """Remove all cached steps."""
    from compresskit.cli.console import tell
    from compresskit.render.figures import size
    from compresskit.runner.cache import Cache

    place = Cache(cache) if cache is not None else Cache.default()
    freed = place.clear()
    if not quiet:
        tell(f"removed {size(freed)} from {place.root}")
