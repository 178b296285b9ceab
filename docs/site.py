"""Build hook of mkdocs.yml: reference pages from the code itself, tables, and links for file names of pages.

The options and keys on the site are those of the code that it is built from, so they cannot become outdated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from docstring_parser import parse_from_object

from simdist.__main__ import COMMANDS, LAUNCHER
from simdist.config.decoder import DecodingConfig
from simdist.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
GENERATED = re.compile(r"<!-- generated: (?P<name>[\w ]+) -->\n_In a clone .*?_$", re.MULTILINE | re.DOTALL)
"""A marker, and below it what a reader of the file itself is told."""
REFERENCE_IMPLEMENTATION = ROOT / "docs" / "reference_implementation.yaml"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated parts, and turn a page's name in backticks into a link to it."""
    parts = {
        "command line": command_line,
        "configuration": configuration,
        "reference implementation": reference_implementation,
    }
    filled = GENERATED.sub(lambda found: parts[found["name"]](), markdown)
    return with_links(filled, Path(page.file.src_uri).parent)


def with_links(markdown: str, folder: Path) -> str:
    """Link the names of pages, such as `docs/tasks/slurm.md`, outside code blocks; `folder` is that of the page."""

    def link(found: re.Match[str]) -> str:
        path = found["path"]
        if not (ROOT / "docs" / path).is_file():
            return found[0]
        return f"[{found[0]}]({os.path.relpath(path, folder)})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"(?<!\[)`docs/(?P<path>[\w/]+\.md)`", link, part) for part in parts
    )


def reference_implementation() -> str:
    """Where the authors' programs are, and a table of what corresponds to them for each section of the YAML file."""
    page = yaml.safe_load(REFERENCE_IMPLEMENTATION.read_text())
    codes = [
        f"- **{name}**: {code['of']}; {code.get('where', 'its')} commit `{code['commit']}`"
        for name, code in page["codes"].items()
    ]
    parts = ["\n".join(codes)]
    for title, rows in page["tables"].items():
        lines = ["| code | the authors' | simdist |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
        parts.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def command_line() -> str:
    """A section for each command with its `--help`, and one for each of its subcommands."""
    with ThreadPoolExecutor(4) as pool:
        sections = pool.map(lambda entry: section(*entry), (COMMANDS | LAUNCHER).items())
    return "\n\n".join(sections)


def section(command: str, summary: str) -> str:
    text = help_of(command)
    parts = [f"## {command}\n\n{summary[0].upper()}{summary[1:]}.\n\n{in_fences(text)}"]
    listed = text.partition("Available subcommands:")[2]
    for name in re.findall(r"^ {4}([a-z][\w-]*) ", listed, re.MULTILINE):
        parts.append(f"### {command} {name}\n\n{in_fences(help_of(command, name))}")
    return "\n\n".join(parts)


def help_of(*command: str) -> str:
    environ = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    words = [sys.executable, "-m", "simdist", *command, "--help"]
    ended = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed: {ended.stderr}")
    return ended.stdout.replace(str(Path.home()), "~").replace(str(ROOT), ".")


def in_fences(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def configuration() -> str:
    """A table of keys for each section of the encoder's configuration, and the decoder's own keys."""
    parts = [f"## Encoders\n\n{table(Config)}"]
    for item in dataclasses.fields(Config):
        kind = get_type_hints(Config)[item.name]
        if dataclasses.is_dataclass(kind):
            for name, of in nested(item.name, kind):
                parts.append(f"### {name}\n\n{about(of)}\n\n{table(of, name + '.')}")
    parts.append(f"## Decoders\n\n`data`, `optim`, `train` and `wandb` are as above.\n\n{table(DecodingConfig)}")
    return "\n\n".join(parts)


def nested(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """The name and dataclass of a section, and of the lists in it."""
    yield name, kind
    for item in dataclasses.fields(kind):
        for element in get_args(get_type_hints(kind)[item.name]):
            if dataclasses.is_dataclass(element):
                yield from nested(f"{name}.{item.name}[]", element)


def about(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split())


def table(kind: Any, prefix: str = "") -> str:
    """The keys of a dataclass, without its sections."""
    texts = {p.args[1]: p.description or "" for p in parse_from_object(kind).params}
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(get_type_hints(kind)[item.name]):
            continue
        text = " ".join(texts.get(item.name, "").split())
        tuning = "" if item.metadata.get("identity", True) else " *tuning*"
        cells = (f"`{prefix}{item.name}`", f"`{item.type}`", default(item), text + tuning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def default(item: dataclasses.Field[Any]) -> str:
    if item.default is dataclasses.MISSING:
        return "required" if item.default_factory is dataclasses.MISSING else "see the preset"
    if isinstance(item.default, tuple) and any(map(dataclasses.is_dataclass, item.default)):
        return "Smooth InfoMax's"
    return f"`{json.dumps(item.default)}`"
