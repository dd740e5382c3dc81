"""What a browser would make of a page, for tests in several folders."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags of a page with their attributes, its scripts and styles by their id or tag, and its words
    with plain spaces.

    Args:
        text: The page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.words: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = str(dict(attrs).get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        self.data[self._in] = self.data.get(self._in, "") + data
        if self._in not in ("script", "style", "figures"):
            self.words.append(data.replace("\u00a0", " "))

    def loaded(self) -> list[str]:
        """What the page would fetch by itself or lets its scripts fetch; empty for one that works from disk alone."""
        found = [f"{tag} {attrs}" for tag, attrs in self.tags if attrs.keys() & {"src", "href", "srcset", "data"}]
        found += re.findall(r"url\(|@import", self.data["style"])
        policy = next((str(attrs["content"]) for _, attrs in self.tags if attrs.get("http-equiv")), "")
        if not policy.startswith("default-src 'none'") or "unsafe-eval" in policy or re.search(r"https?:", policy):
            found.append(f"policy: {policy}")
        return found
