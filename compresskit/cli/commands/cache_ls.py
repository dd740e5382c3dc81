"""``compresskit cache ls``."""

from __future__ import annotations

from compresskit.cli import options as shared


def command(cache: shared.CacheFolder = None, json: shared.Json = None) -> None:
    """List cached steps, most recently used first."""
    import json as jsonlib

    from compresskit.cli.console import check_json, write_json
    from compresskit.render.cache_view import print_cache
    from compresskit.runner.cache import Cache

    check_json(json)
    place = Cache(cache) if cache is not None else Cache.default()
    entries = place.entries()
    found = [{"key": e.path.name, "steps": e.about["stages"], "bytes": e.bytes, "used": e.used} for e in entries]
    write_json(jsonlib.dumps(found, indent=2) + "\n", json)
    if json != "-":
        print_cache(place.root, entries)
