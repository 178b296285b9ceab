"""One HTML page with tables, charts, figures and audio of runs, readable without a network.

Every text that comes from a run passes through jinja's escaping and through `redacted`.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from simdist.analyze.registry import ANALYSES
from simdist.core.secrets import redacted
from simdist.report import curves
from simdist.report.charts import DASHES, GREY, OTHER, Chart, Line
from simdist.report.collect import RunContent
from simdist.report.drawing import as_json, as_svg, library
from simdist.report.files import UnreadableFile
from simdist.report.media import audio_sets, figures, reconstructions
from simdist.report.missing import missing_pieces
from simdist.report.selection import Selection
from simdist.report.summary import FEWEST_SEEDS, Cell, Statistic
from simdist.report.tables import Section, common_settings, configuration_sections, overview_section, split_by

TEMPLATES = Path(__file__).parent / "templates"
BY_LABEL = ("probes", "few-labels", "weights", "robustness")  # a table for each label
Item = TypeVar("Item")
Track = Callable[[Iterable[Item], str, int], Iterable[Item]]
"""A progress bar over (items, what is done, how many)."""

METHODS = (
    "± is the sample standard deviation (n − 1) over runs that differ in nothing but the seed. A number in brackets "
    "behind a mean says of how many seeds it is, where they are fewer than elsewhere in the table.",
    "Probes: accuracy on the test split, of the last checkpoint that was probed. Chance is 1 / classes.",
    "Differences: Welch's t-test over seeds (unequal variances, two-sided), only where both encoders have "
    f"{FEWEST_SEEDS} seeds or more; p is corrected by Holm's method over all comparisons of one label. The interval is "
    "Welch's, not corrected. A few seeds find large differences only: no star is no proof of equality.",
    "Curves: at most 200 points of a run, evenly chosen, values as they were logged; 60 points where there are more "
    "than 60 runs. Faint lines are runs, the thick one their mean, the band ± one standard deviation.",
    "Few labels: a run's point is the mean over its draws of examples; the band is ± one standard deviation of seeds.",
    "Weight densities: each class's weights divided by the largest magnitude, Gaussian kernels of Scott's bandwidth.",
    "Contribution: error to the decoded second clip that is left when the n most different dimensions are taken from "
    "it, as a share of the error with none taken; medians over pairs of clips.",
    "Sounds have the samples of the run's WAV files (FLAC, lossless), the first 30 seconds; a drawn waveform is scaled "
    "to the loudest sound next to it.",
)


@dataclass(frozen=True)
class Contents:
    """The content of the page."""

    title: str
    runs: Sequence[RunContent]
    cells: Mapping[Cell, Statistic]
    selection: Selection
    sections: Sequence[Section]
    """All tables."""
    notes: Sequence[str]
    """Sentences on unfinished and absent runs."""
    problems: list[UnreadableFile]
    """Files that could not be used; those of charts, figures and sounds are added."""


def render(contents: Contents, track: Track[Any]) -> str:
    """The page.

    Args:
        contents: what it shows.
        track: a progress bar.
    """
    problems, selection = contents.problems, contents.selection
    charts = _charts(contents)
    detailed = selection.detailed
    made = {
        "title": contents.title,
        "about": _about(contents),
        "notes": contents.notes,
        "detail": f"Figures and audio are of {_names(detailed)} ({selection.reason}; --detail chooses others).",
        "overview": overview_section(contents.runs, selection, contents.cells),
        "corpora": _corpora(contents.runs),
        "tables": _tables(contents),
        "common": common_settings(contents.runs),
        "legends": {name: _legend(contents, own) for name, own in charts.items()},
        "charts": _drawn(charts, track),
        "reading": _reading(contents),
        "no_test": f"Differences are tested where two encoders have {FEWEST_SEEDS} seeds or more; here none have.",
        "reconstructions": reconstructions(detailed, problems),
        "audio": audio_sets(detailed, problems),
        "figures": figures(detailed, problems, track),
        "analyses": [entry for entry in ANALYSES.values() if entry.heading],
        "others": [name for name, entry in ANALYSES.items() if not entry.heading],
        "missing": [
            SimpleNamespace(**vars(piece), runs=len({run for run, _ in piece.commands}))
            for piece in missing_pieces(contents.runs)
        ],
        "methods": METHODS,
    }
    made["has_others"] = any(item.section == "others" for item in [*made["figures"], *made["audio"]]) or any(
        name in made["tables"] for name in made["others"]
    )
    made["shown"] = {
        name: bool(made["charts"].get(name))
        or any(item.section == name for key in ("audio", "figures", "missing") for item in made[key])
        for name in _headings()
    }
    made["contents"] = [(n, title) for n, title in _headings().items() if n != "others" or made["has_others"]]
    made["problems"] = problems
    return _environment().get_template("report.html.j2").render(
        page=made,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "script.js").read_text(encoding="utf-8")),
        library=Markup(library()),
    )  # fmt: skip


def _headings() -> dict[str, str]:
    """The sections of the page, by anchor; those of analyses follow the registry."""
    return {
        "summary": "Summary",
        "runs": "Runs and configurations",
        "losses": "Losses",
        "probes": "Probes",
        "few-labels": "Few labels",
        "reconstructions": "Reconstructions",
        **{entry.name: entry.heading for entry in ANALYSES.values() if entry.heading},
        "others": "Other analyses",
        "methods": "How the numbers were made",
    }


def _environment() -> jinja2.Environment:
    """Escapes everything, and takes secrets out of all that is not ours."""

    @functools.cache  # cells repeat each other
    def shown(text: str) -> str:
        return redacted(text, keep_hashes=False)  # a page shows no commits

    def finalize(value: Any) -> Any:
        is_ours = isinstance(value, Markup) or (isinstance(value, str) and value.startswith("data:"))
        return value if is_ours or isinstance(value, int) else shown(str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _charts(contents: Contents) -> dict[str, list[Chart]]:
    """Charts by the part of the page that they stand in."""
    runs, cells, selection, problems = contents.runs, contents.cells, contents.selection, contents.problems
    return {
        "losses": curves.loss_charts(runs, selection),
        "probes": [*curves.module_charts(runs, selection), *curves.trajectory_charts(runs, selection)],
        "few-labels": curves.few_label_charts(cells, selection),
        "distributions": curves.distribution_charts(runs, selection, problems),
        "weights": curves.weight_charts(runs, selection, problems),
        "contribution": curves.contribution_charts(runs, selection, problems),
    }


def _drawn(charts: Mapping[str, Sequence[Chart]], track: Track[Any]) -> dict[str, list[dict[str, Any]]]:
    """Draw each panel twice: as SVG, and for bokeh."""
    every = [(c.name, place, panel) for own in charts.values() for c in own for place, panel in enumerate(c.panels)]
    drawn: dict[str, list[dict[str, Any]]] = {}
    for name, place, panel in track(every, "drawing charts", len(every)):
        drawn.setdefault(name, []).append(
            {
                "title": panel.title,
                "reference": panel.reference[1] if panel.reference else "",
                "svg": Markup(as_svg(panel, f"{name}-{place}")),
                "json": Markup(as_json(panel)),
            }
        )
    return {
        where: [{"title": chart.title, "note": chart.note, "panels": drawn[chart.name]} for chart in own]
        for where, own in charts.items()
    }


def _tables(contents: Contents) -> dict[str, list[Section]]:
    """Tables by name, without empty ones; some are split, one per label."""
    found: defaultdict[str, list[Section]] = defaultdict(list)
    for section in [*configuration_sections(contents.runs, contents.selection), *contents.sections]:
        parts = split_by(section, "label") if section.name in BY_LABEL else [section]
        found[section.name] += parts
    return found


def _legend(contents: Contents, charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """The encoders that have a line in these charts."""
    selection = contents.selection
    places = {line.place for chart in charts for panel in chart.panels for line in panel.lines}
    items = []
    for place, group in enumerate(selection.colored):
        if place not in places:
            continue
        line = Line(place, "", [], [])  # pyright: ignore[reportArgumentType]
        dash = " ".join(map(str, DASHES[place % len(DASHES)]))
        items.append({"place": place, "color": line.color, "dash": dash, "label": selection.label(group)})
    others = len(set(selection.groups.values())) - len(selection.colored)
    if others and OTHER in places:
        items.append({"place": OTHER, "color": GREY, "dash": "", "label": f"{others} other encoders"})
    return items


def _about(contents: Contents) -> str:
    runs, groups = len(contents.runs), len(set(contents.selection.groups.values()))
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    encoders = f"{groups} encoder{'s' * (groups > 1)}" + " (runs that differ only in the seed are one)" * (
        runs > groups
    )
    return f"{runs} run{'s' * (runs > 1)} of {encoders}. Made {when} by simdist {metadata.version('simdist')}."


def _corpora(runs: Sequence[RunContent]) -> str:
    """A sentence about the training data."""
    counts: Counter[str] = Counter()
    for run in runs:
        root, split = (run.record.config.get(f"data.{key}") for key in ("root", "train_split"))
        counts[f"split {split} of {root}"] += 1
    if len(counts) == 1:
        return f"All runs were trained on {next(iter(counts))}."
    return "Trained on " + "; ".join(f"{corpus} ({number} runs)" for corpus, number in counts.items()) + "."


def _reading(contents: Contents) -> str:
    several = len(contents.runs) > len(set(contents.selection.groups.values()))
    text = (
        "Colors and dashes mean the same in all charts; click a name to hide it, drag to zoom. "
        "Where a panel shows both, thin lines are training batches and thick lines validation."
    )
    return text + " Faint lines are single runs, the thick one their mean, the band ± one standard deviation." * several


def _names(runs: Sequence[RunContent]) -> str:
    return ", ".join(run.record.name for run in runs)
