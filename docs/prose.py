"""Checks the English of README, docs, help and messages: no word in a private sense, short sentences, plain words.

    python docs/prose.py [--figures] [FILE.md …]

Without files it checks all. It prints what is wrong, and with ``--figures`` the measures of each page: Flesch's reading
ease and the words in a sentence, of the prose without code, tables and headings.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOOR, LONGEST = 60.0, 16.0
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
GENERATED = {"commands.md"}
"""Their words are checked; their sentences are those of the code."""
PRIVATE = {
    r"\bminds?\b(?! map)": "is sensitive to",
    r"\bh[oe]lds? (\w+ )?(against|to (its|the|their) limits?)\b": "compare with",
    r"\b(comes?|came) of (it|training|an?)\b": "the result of",
    r"\bbec[ao]mes? of\b": "the result of",
    r"\b(is|are|was|be|been) told\b": "is reported",
    r"\bsooner\b": "faster, earlier",
    r"\boutputs? feels?\b": "is weighted by its effect on",
    r"\bleaves? \S+ away\b": "remove",
    r"\bmade-up\b": "random, simulated",
    r"\banew\b|\bafresh\b": "again",
    r"\bfragile\b": "sensitive",
    r"\blikeness\b": "similarity",
    r"\bmends?\b": "fix",
    r"\bhang together\b": "are coupled",
    r"\bmay (stay|go)\b|\bis to go\b|\bare to go\b": "to keep, to remove",
    r"\bkeeps? (the|your) bars?\b": "meets the limits",
    r"\bfrom \d+ (samples )?on\b": "with at least",
    r"\bwhat ships\b|\bas (it|they) ships?\b": "the deployed file",
    r"\bthe house\b": "the code",
    r"\bmakes? up for\b|\bmade up for\b": "compensates",
    r"\bsettled?\b": "decided",
    r"\blet be\b": "ignored",
    r"\bonly what is\b|\bat the narrowest\b": "say the condition",
}


def prose(text: str) -> str:
    """The running text of a Markdown page: one paragraph a line, inline code as one word."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", text, flags=re.M | re.S)
    text = re.sub(r"^\s*\|.*$|^#.*$|^:::.*$|!\[.*?\]\(.*?\)|<!--.*?-->", "", text, flags=re.M)
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "it", text)
    text = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "\n", text, flags=re.M).replace("*", "")
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(part if part[-1] in ".?!:" else f"{part}." for part in parts if len(part.split()) > 2)


def syllables(word: str) -> int:
    """About how many syllables an English word has; the sum over these pages is that of CMU's dictionary within 1 %."""
    word = re.sub(r"[^a-z]", "", word.lower())
    if len(word) > 3 and not re.search(r"(?:[sxzgc]|ch|sh)es$", word):
        word = re.sub(r"(?:[^laeiouy]es|[^td]ed|[^laeiouy]e)$", "", word)
    return max(1, len(re.findall(r"[aeiouy]{1,2}", word.removeprefix("y"))))


def figures(text: str) -> tuple[float, float]:
    """(Flesch's reading ease, words a sentence) of running text."""
    sentences = [part for part in re.split(r"(?<=[.?!:])\s+", text) if re.search(r"[A-Za-z]", part)]
    words = re.findall(r"[A-Za-z][\w'’-]*", text)
    length = len(words) / max(1, len(sentences))
    return 206.835 - 1.015 * length - 84.6 * sum(map(syllables, words)) / max(1, len(words)), length


def private(text: str) -> Iterator[tuple[str, str]]:
    """Each phrase in a private sense, with what to write instead; code is not looked at."""
    plain = re.sub(r"^(```|~~~)(?!text).*?^\1$|`[^`]*`", "", text, flags=re.M | re.S)
    plain = re.sub(r"\s+", " ", plain)
    for pattern, better in PRIVATE.items():
        for found in re.finditer(pattern, plain, re.I):
            yield plain[max(0, found.start() - 30) : found.end() + 20].strip(), better


def faults(page: Path) -> Iterator[str]:
    """What is wrong with a page, in lines."""
    text = page.read_text(encoding="utf-8")
    for found, better in private(text):
        yield f"{page.name}: '… {found} …': write '{better}'"
    ease, length = figures(prose(text))
    if page.name not in GENERATED and len(prose(text).split()) > 60 and (ease < FLOOR or length > LONGEST):
        yield (
            f"{page.name}: reading ease {ease:.0f} (at least {FLOOR:.0f}), "
            f"{length:.0f} words in a sentence (at most {LONGEST:.0f})"
        )


def messages(module: Path) -> Iterator[str]:
    """What is wrong with the strings of a module, in lines; docstrings are left to who reads the code."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            for found, better in private(node.value) if " " in node.value else ():
                yield f"{module.relative_to(ROOT)}:{node.lineno}: '… {found} …': write '{better}'"


def main() -> int:
    """Check the pages."""
    names = [word for word in sys.argv[1:] if word != "--figures"]
    pages = [Path(name) for name in names] or PAGES
    if "--figures" in sys.argv[1:]:
        for page in pages:
            ease, length = figures(prose(page.read_text(encoding="utf-8")))
            print(f"{page.name:24} {ease:5.1f} {length:5.1f}")
    wrong = [line for page in pages for line in faults(page)]
    if not names:
        wrong += [line for module in sorted((ROOT / "compresskit").rglob("*.py")) for line in messages(module)]
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
