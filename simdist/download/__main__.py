"""Download a public corpus: `python -m simdist.download librispeech train-clean-100`."""

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
    LABELED_SUBSET,
    MIRRORS,
    SUBSETS,
    Archive,
    is_address,
    mirror_addresses,
    wanted_archives,
)
from simdist.download.downloads import DEFAULT_ROOT, Layout, Origin, download_labels, download_subset, require_room
from simdist.download.fetching import Patience

DESCRIPTION = f"""Download LibriSpeech from openslr.org, with CPC's splits and phone labels, for simdist.pack.

  python -m simdist.download librispeech train-clean-100
  python -m simdist.download librispeech dev-clean test-clean --to /corpora --mirror eu
  python -m simdist.download --list

Run the same command again to resume an interrupted download; existing files are kept. Archives are verified against
openslr.org's md5 sums before they are unpacked. The mirrors are {", ".join(MIRRORS)}, tried in this order or in
that of --mirror.

Exit codes: 0 finished; 1 failed (no mirror answers, a checksum is wrong, the disk is full); 2 wrong input; 75 preempted
(run the same command again to resume); 130 stopped with Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, download what is missing, and print the next command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    layout = Layout(Path(arguments.to))
    console = Console(soft_wrap=True, highlight=False)
    if arguments.list:
        _list(layout, console)
        return EXIT_OK
    if arguments.corpus != "librispeech":
        unknown = f"unknown corpus {arguments.corpus!r}" if arguments.corpus else "CORPUS is missing"
        raise InputError(f"{unknown}; the only one is librispeech, and --list shows its subsets")
    archives = wanted_archives(arguments.subsets or [DEFAULT_SUBSET])
    origin = _origin(arguments)
    stop = SignalHandler()
    try:
        with stop.installed(), locked(layout.root, ".download.lock", writer="simdist.download"):
            _download(layout, archives, origin, arguments, console, stop)
    except StoppedError as stopped:
        name = signal.Signals(stopped.signal_number).name
        fail(
            f"stopped by {name}. Finished downloads are kept; run the same command to resume",
            exit_code(stopped.signal_number),
        )
    console.print(f"next: {escape(_next_command(layout, archives, labels=not arguments.no_labels))}")
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(prog="python -m simdist.download", description=DESCRIPTION)
    add = parser.add_argument
    add("corpus", type=str | None, nargs="?", metavar="CORPUS", help="Corpus to download: librispeech.")
    add(
        "subsets",
        type=str,
        nargs="*",
        default=[],
        metavar="SUBSET",
        help=f"Subsets to download, of those that --list shows. Default: {DEFAULT_SUBSET}.",
    )
    add(
        "--to", type=str, default=str(DEFAULT_ROOT), help="Folder for the corpus. simdist.pack finds it in the default."
    )
    add(
        "--mirror",
        type=str,
        nargs="+",
        default=[],
        help=f"Mirrors in order of preference: {', '.join(MIRRORS)}, or addresses. Default: all, in this order.",
    )
    add("--no-labels", action="store_true", help=f"Skip CPC's splits and phone labels of {LABELED_SUBSET}.")
    add(
        "--splits-url",
        type=str | None,
        default=None,
        help="Address of a folder with {train,test}_split.txt, instead of CPC's.",
    )
    add(
        "--phones-url",
        type=str | None,
        default=None,
        help="Address of converted_aligned_phones.txt or its zip, instead of CPC's.",
    )
    add("--keep-archives", action="store_true", help="Keep SUBSET.tar.gz after unpacking.")
    add(
        "--retries",
        type=int,
        default=Patience.retries,
        help="Failed attempts in a row before the next mirror is tried.",
    )
    add("--timeout", type=float, default=Patience.timeout, help="Seconds of silence before a connection is retried.")
    add("--list", action="store_true", help="List the subsets, their sizes and which exist; download nothing.")
    return parser


def _origin(arguments: Any) -> Origin:
    for name in ("splits", "phones"):
        url = arguments[f"{name}_url"]
        if url is not None and not is_address(url):
            raise InputError(f"--{name}-url {url!r} is not an address; it must begin with https:// or http://")
    if arguments.retries < 0:
        raise InputError(f"--retries is {arguments.retries}; it must be at least 0")
    if arguments.timeout <= 0:
        raise InputError(f"--timeout is {arguments.timeout:g}; it must be more than 0 seconds")
    patience = Patience(arguments.retries, arguments.timeout)
    return Origin(mirror_addresses(arguments.mirror), arguments.splits_url, arguments.phones_url, patience)


def _download(
    layout: Layout, archives: list[Archive], origin: Origin, arguments: Any, console: Console, stop: SignalHandler
) -> None:
    missing = [archive for archive in archives if not layout.has(archive)]
    labels = _has_labels(archives) and not arguments.no_labels
    labels &= not all(path.is_file() for path in (*layout.lists, layout.phones))
    require_room(layout, missing, labels, arguments.keep_archives)
    for archive in archives:
        if archive in missing:
            download_subset(layout, archive, origin, arguments.keep_archives, console, stop)
        else:
            console.print(f"exists already: {escape(str(layout.corpus / archive.subset))}")
    if labels:
        download_labels(layout, origin, console, stop)


def _has_labels(archives: list[Archive]) -> bool:
    return any(archive.subset == LABELED_SUBSET for archive in archives)


def _next_command(layout: Layout, archives: list[Archive], labels: bool) -> str:
    """The command that packs what was downloaded."""
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
