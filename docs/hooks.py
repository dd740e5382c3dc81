"""What the site needs beyond Markdown: plain fences, and links to the repository for what lies outside of docs/."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w+) [^\n`]+$", re.M)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Turn ``](../FILE)`` into a link to the repository, and leave out the words for ``docs/replay.py``."""
    repository = str(config["repo_url"]).rstrip("/")
    return _FENCE.sub(r"```\1", _OUTSIDE.sub(rf"]({repository}/blob/main/\1)", markdown))
