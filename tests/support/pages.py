"""README and docs as the tests read them: fenced blocks, and the commands in them as words."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(?P<language>\w*)(?P<title>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_SEPARATORS = {";", "&&", "||", "|", "&", "(", ")"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    language: str
    title: str
    """What follows the language on the fence, such as a file's name."""
    text: str


@dataclass(frozen=True)
class Command:
    """A simple command of a block, its variables replaced, without comments, assignments and redirections."""

    page: str
    line: int
    """Of the block it stands in."""
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}: {self}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.name, text[: m.start()].count("\n") + 1, m["language"], m["title"].strip(), m["text"])
        for m in _FENCE.finditer(text)
        if m["language"] in languages
    ]


def file_of(page: str, name: str) -> str:
    """The content of the block whose title is `name`."""
    found = [b for b in blocks(ROOT / "docs" / "tasks" / page, "python", "yaml", "diff", "bash") if b.title == name]
    assert len(found) == 1, f"{page} has {len(found)} blocks titled {name}"
    return found[0].text


def commands_of(page: Path) -> list[Command]:
    """Every command of a page's `bash` blocks, and behind every `$` of its `console` blocks."""
    found = []
    for block in blocks(page, "bash", "console"):
        text = block.text
        if block.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        found += [Command(block.page, block.line, words) for words in simple_commands(text)]
    return found


def inline_commands_of(page: Path) -> list[Command]:
    """Commands of ours between single backticks, but for those that leave something out (…)."""
    text = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return inline_commands_in(text, page.name)


def inline_commands_in(text: str, name: str) -> list[Command]:
    """The same of a text without fenced blocks, which is called `name`."""
    found = []
    for span in re.finditer(
        r"`((?:\w+=\S+ )*(?:python (?:-m (?:simdist|benchmarks)|launch/)|accelerate launch [^`]*-m )[^`]*)`", text
    ):
        if "…" not in span[1] and "..." not in span[1]:
            line = text[: span.start()].count("\n") + 1
            found += [Command(name, line, words) for words in simple_commands(" ".join(span[1].split()))]
    return found


def simple_commands(text: str) -> list[tuple[str, ...]]:
    """The simple commands of a script without control structures."""
    lexer = shlex.shlex(_without_comments(text.replace("\\\n", " ")), posix=True, punctuation_chars=";&|<>()\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[tuple[str, ...]] = []
    variables: dict[str, str] = {}
    words: list[str] = []
    for token in [*lexer, "\n"]:
        if token.strip() and token not in _SEPARATORS:
            words.append(token)
            continue
        command = _substituted(words, variables)
        commands += [command] if command else []
        words = []
    return commands


def _without_comments(text: str) -> str:
    """Cut from each `#` that begins a word outside quotes to the end of its line."""
    kept, quote, in_comment = [], "", False
    for before, character in zip(" " + text, text, strict=False):
        if character == "\n":
            in_comment = False
        elif not in_comment and character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        elif character == "#" and not quote and before.isspace():
            in_comment = True
        kept.append("" if in_comment else character)
    return "".join(kept)


def _substituted(words: list[str], variables: dict[str, str]) -> tuple[str, ...]:
    """Words with their variables replaced; assignments in front are taken into `variables`."""
    words = list(words)
    while words and (assigned := _ASSIGNMENT.fullmatch(words[0])):
        variables[assigned["name"]] = assigned["value"]
        words.pop(0)
    if ">" in words:
        words = words[: words.index(">")]
    out: list[str] = []
    for word in words:
        name = word[1:] if word.startswith("$") else ""
        out += variables[name].split() if name in variables else [word]
    return tuple(out)


def main_module(name: str) -> str:
    """The module whose `main` runs `python -m NAME`."""
    return f"{name}.__main__" if hasattr(importlib.import_module(name), "__path__") else name
