"""The documents hold what the program does: links lead somewhere, commands exist, the generated page is current."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
HAS_CLI = (ROOT / "compresskit" / "cli" / "main.py").is_file()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
OPTION = re.compile(r"(?<![\w-])-{1,2}[A-Za-z][\w-]*")

needs_cli = pytest.mark.skipif(not HAS_CLI, reason="this build has no command line")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Relative links outside of code."""
    prose = BLOCK.sub("", text)
    found = (one or two for one, two in LINK.findall(prose))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    titles = re.findall(r"^#{1,6} (.+)$", BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """The ``compresskit …`` lines in code blocks, as words without the prompt; continued lines are joined."""
    found = []
    for _, body in BLOCK.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").strip()
            if re.match(r"(\S*/)?compresskit(\s|$)", words):
                found.append(shlex.split(words, comments=True)[1:])
    return found


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_links_lead_to_files(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        file = path if not target else (path.parent / target).resolve()
        assert file.exists(), f"{name_of(path)} links to {link}"
        assert file.is_relative_to(ROOT), f"{name_of(path)} links outside of the repository: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name_of(path)} links to {link}"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_documents_name_no_folder_of_one_machine(path: Path) -> None:
    found = re.findall(r"(?:/(?:home|Users|root|work)/|\.\./shared)\S*", path.read_text(encoding="utf-8"))
    assert not found


@cache
def options_of(command: str) -> frozenset[str]:
    """Every option of a command, of all its methods, off the page that `make check` holds against their help."""
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    title = f"compresskit {command}".rstrip()
    parts = [part for part in re.split(r"^##+ ", page, flags=re.M) if re.match(rf"{re.escape(title)}( |$)", part, re.M)]
    own = parts if command else parts[:1]
    return frozenset(option for part in own for option in OPTION.findall(part))


@needs_cli
@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_commands_in_documents_exist(path: Path) -> None:
    from compresskit.cli.main import command_names

    for words in commands(path.read_text(encoding="utf-8")):
        command = next((word for word in words if not word.startswith("-")), "")
        assert not command or command in command_names(), f"{name_of(path)}: compresskit {command}"
        for word in words:
            if OPTION.match(word):
                assert word.partition("=")[0] in options_of(command), f"{name_of(path)}: compresskit {command} {word}"


@needs_cli
def test_every_command_is_documented() -> None:
    from compresskit.cli.main import command_names

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in command_names():
        assert f"\n## compresskit {name}\n" in page


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for path in WRITTEN:
        for target in re.findall(r"`make ([a-z]+)`|^\s*(?:\$ )?make ([a-z]+)", path.read_text(encoding="utf-8"), re.M):
            assert (target[0] or target[1]) in targets, f"{name_of(path)}: make {target}"


def test_the_readers_of_documents_find_what_they_should() -> None:
    """The checks above are no better than what they find."""
    code = "```sh\n$ compresskit quantize m.pt \\\n  --bits 4  # note\ncompresskit --help\n```\n"
    text = f"[a](b.md#c) ![x](y.png) [w](https://z)\n{code}"
    assert links(text) == ["b.md#c", "y.png"]
    assert commands(text) == [["quantize", "m.pt", "--bits", "4"], ["--help"]]
    assert anchors("## What it's, `code`\n") == {"what-its-code"}
    assert OPTION.findall("-o, --output FILE  max-drop --max-drop") == ["-o", "--output", "--max-drop"]
