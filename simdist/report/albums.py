"""The figures that analyses and decoders wrote, of the runs that are shown in detail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.report.analyses import Finding
from simdist.report.collect import RunContent
from simdist.report.files import Problem
from simdist.report.media import picture

OWN_SECTIONS = ("distributions", "weights", "contribution", "traversal", "interpolation", "samples")


@dataclass(frozen=True)
class Album:
    """Figures of one analysis."""

    kind: str
    section: str
    """The part of the page where it stands."""
    run: str
    module: int
    pictures: list[tuple[str, str]]
    """Titles and data URIs."""


def albums(
    runs: Sequence[RunContent], problems: list[Problem], track: Callable[[Iterable[Any], str, int], Iterable[Any]]
) -> list[Album]:
    """Every PNG of these runs' analyses."""
    findings = sorted(
        (finding for run in runs for finding in run.findings if finding.kind != "decoder"), key=lambda f: f.kind
    )
    files = [(finding, path) for finding in findings for path in sorted(finding.folder.glob("*.png"))]
    made: dict[Path, Album] = {}
    for finding, path in track(files, "embedding figures", len(files)):
        uri = picture(path, problems)
        if uri is not None:
            made.setdefault(finding.folder, _album(finding)).pictures.append((path.stem, uri))
    return list(made.values())


def _album(finding: Finding) -> Album:
    section = finding.kind if finding.kind in OWN_SECTIONS else "others"
    return Album(finding.kind, section, finding.run, finding.module, [])
