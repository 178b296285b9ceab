"""Fetch a public corpus: `python -m simdist.download librispeech train-clean-100`.

The work is in `simdist.data`; here are the command line, what it prints and its exit codes: 0 everything is there,
1 the network, a checksum or the disk failed, 2 bad input, 75 stopped by SIGTERM or SIGUSR2, 130 by Ctrl-C. After 1, 75
and 130 the same command continues.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from simdist.config.parser import Parser
from simdist.core.console import fail, run
from simdist.core.errors import EXIT_OK, InputError
from simdist.core.file_locks import locked
from simdist.core.signals import SignalHandler, StoppedError, exit_code
from simdist.download.addresses import (
    DEFAULT_SUBSET,
    LABELLED_SUBSET,
    MIRRORS,
    SUBSETS,
    Archive,
    is_address,
    mirror_addresses,
    wanted_archives,
)
from simdist.download.downloads import DEFAULT_ROOT, Layout, Sources, bring_labels, bring_subset, require_room
from simdist.download.fetching import Patience

_ABOUT = f"""Fetch LibriSpeech from openslr.org, with the splits and phone labels of CPC, for simdist.pack.

  python -m simdist.download librispeech train-clean-100
  python -m simdist.download librispeech dev-clean test-clean --to /corpora --mirror eu
  python -m simdist.download --list

A download that was stopped or killed continues where it was when the same command is run again, and what is there
already is not fetched again. Archives are checked against openslr.org's md5 sums before they are unpacked. Mirrors are
{", ".join(MIRRORS)}; they are tried in this order, or in the order that --mirror gives."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, fetch what is missing, and say what to do next; returns the exit code."""
    arguments = _parser().parse_args(argv)
    layout = Layout(Path(arguments.to))
    console = Console(soft_wrap=True, highlight=False)
    if arguments.list:
        _list(layout, console)
        return EXIT_OK
    if arguments.corpus != "librispeech":
        unknown = f"unknown corpus {arguments.corpus!r}" if arguments.corpus else "which corpus?"
        raise InputError(f"{unknown}; there is one, librispeech, and --list shows its subsets")
    archives = wanted_archives(arguments.subsets or [DEFAULT_SUBSET])
    sources = _sources(arguments)
    stop = SignalHandler()
    try:
        with stop.installed(), locked(layout.root, ".download.lock", writer="simdist.download"):
            _bring(layout, archives, sources, arguments, console, stop)
    except StoppedError as stopped:
        name = signal.Signals(stopped.signal_number).name
        fail(f"stopped by {name}; what came is kept, and the same command continues", exit_code(stopped.signal_number))
    console.print(f"next: {escape(_next(layout, archives, labels=not arguments.no_labels))}")
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(prog="python -m simdist.download", description=_ABOUT)
    add = parser.add_argument
    add("corpus", type=str | None, nargs="?", metavar="CORPUS", help="librispeech")
    add(
        "subsets",
        type=str,
        nargs="*",
        default=[],
        metavar="SUBSET",
        help=f"Subsets of it; {DEFAULT_SUBSET} if none is given.",
    )
    add("--to", type=str, default=str(DEFAULT_ROOT), help="Folder for the corpus; simdist.pack looks in the default.")
    add("--mirror", type=str, nargs="+", default=[], help=f"{', '.join(MIRRORS)}, or an address; in this order.")
    add("--no-labels", action="store_true", help=f"Leave out CPC's splits and phone labels of {LABELLED_SUBSET}.")
    add("--splits-url", type=str | None, default=None, help="Folder on the web with train_split.txt, test_split.txt.")
    add("--phones-url", type=str | None, default=None, help="Address of converted_aligned_phones.txt or its zip.")
    add("--keep-archives", action="store_true", help="Keep SUBSET.tar.gz after unpacking.")
    add("--retries", type=int, default=Patience.retries, help="Attempts in a row that bring nothing, for each mirror.")
    add("--timeout", type=float, default=Patience.timeout, help="Seconds of silence before a connection is given up.")
    add("--list", action="store_true", help="Show the subsets, their sizes and which are there; fetch nothing.")
    return parser


def _sources(arguments: Any) -> Sources:
    for name in ("splits", "phones"):
        url = arguments[f"{name}_url"]
        if url is not None and not is_address(url):
            raise InputError(f"--{name}-url {url!r} is no address; it must begin with https:// or http://")
    if arguments.retries < 0:
        raise InputError(f"--retries is {arguments.retries}; it must be at least 0")
    if arguments.timeout <= 0:
        raise InputError(f"--timeout is {arguments.timeout:g}; it must be more than 0 seconds")
    patience = Patience(arguments.retries, arguments.timeout)
    return Sources(mirror_addresses(arguments.mirror), arguments.splits_url, arguments.phones_url, patience)


def _bring(
    layout: Layout, archives: list[Archive], sources: Sources, arguments: Any, console: Console, stop: SignalHandler
) -> None:
    missing = [archive for archive in archives if not layout.has(archive)]
    wanted = _has_labels(archives) and not arguments.no_labels
    labels = wanted and not all(path.is_file() for path in layout.labels())
    require_room(layout, missing, labels, arguments.keep_archives)
    for archive in archives:
        if archive in missing:
            bring_subset(layout, archive, sources, arguments.keep_archives, console, stop)
        else:
            console.print(f"there already: {escape(str(layout.corpus / archive.subset))}")
    if labels:
        bring_labels(layout, sources, console, stop)


def _has_labels(archives: list[Archive]) -> bool:
    return any(archive.subset == LABELLED_SUBSET for archive in archives)


def _next(layout: Layout, archives: list[Archive], labels: bool) -> str:
    """The command that packs what was fetched."""
    if layout.root == DEFAULT_ROOT and labels and _has_labels(archives):
        return "python -m simdist.pack librispeech"
    subsets = " ".join(archive.subset for archive in archives)
    return f"python -m simdist.pack librispeech {layout.root} data/librispeech --subsets {subsets}"


def _list(layout: Layout, console: Console) -> None:
    console.print(f"{'subset':<16} {'archive':>9} {'unpacked':>9} {'hours':>6} {'utterances':>11}")
    for archive in SUBSETS.values():
        sizes = f"{archive.size / 1e9:>6.2f} GB {archive.unpacked / 1e9:>6.2f} GB"
        there = f"  in {layout.corpus}" if (layout.corpus / archive.subset).is_dir() else ""
        line = f"{archive.subset:<16} {sizes} {archive.hours:>6.1f} {archive.utterances:>11,}{there}"
        console.print(line, markup=False)


if __name__ == "__main__":
    run(main)
