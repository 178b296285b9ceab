"""Download a public corpus: `python -m simdist.download librispeech train-clean-100`."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from simdist.config.parser import Parser, did_you_mean
from simdist.core.console import fail, run
from simdist.core.errors import EXIT_OK, FailedError, InputError
from simdist.core.file_locks import locked
from simdist.core.progress import transfer
from simdist.core.signals import SignalHandler, StoppedError, exit_code
from simdist.download.fetching import WebFile, label_fault, part_of, size_of, unpack
from simdist.download.librispeech import (
    DEFAULT_ROOT,
    LABELED_SUBSET,
    LABELS,
    LABELS_FOLDER,
    MIRRORS,
    PHONES_LINE,
    SPLITS_LINE,
    SUBSETS,
    Archive,
    Layout,
)

DESCRIPTION = f"""Download LibriSpeech from openslr.org, with CPC's splits and phone labels, for simdist.pack.

  python -m simdist.download librispeech train-clean-100
  python -m simdist.download librispeech dev-clean test-clean --to /corpora --mirror eu
  python -m simdist.download --list

Run the same command again to resume an interrupted download; existing files are kept. Archives are verified against
openslr.org's md5 sums before they are unpacked. The mirrors are {", ".join(MIRRORS)}, tried in this order or in
that of --mirror.

Exit codes: 0 finished; 1 failed (no mirror answers, a checksum is wrong, the disk is full); 2 wrong input; 75 preempted
(run the same command again to resume); 130 stopped with Ctrl-C."""
REMEDY = "run the same command again to resume, or name another --mirror"
SCHEMES = ("https://", "http://")
LABELS_BYTES = 200_000_000  # the phone labels of 100 hours, downloaded and unpacked


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, download what is missing, and print the next command; returns the exit code."""
    options = _parser().parse_args(argv)
    layout, console, stop = Layout(options.to), Console(soft_wrap=True, highlight=False), SignalHandler()
    if options.list:
        _list(layout, console)
        return EXIT_OK
    _check(options)
    archives = [SUBSETS[name] for name in dict.fromkeys(options.subsets)]
    labels = LABELED_SUBSET in options.subsets and not options.no_labels
    try:
        with stop.installed(), locked(layout.root, ".download.lock", writer="simdist.download"):
            missing = [archive for archive in archives if not layout.has(archive)]
            labels_bytes = LABELS_BYTES if labels and not layout.has_labels() else 0
            _require_room(layout, bytes_needed(layout, missing, options.keep_archives) + labels_bytes)
            for archive in archives:
                if archive in missing:
                    _download_subset(layout, archive, options, console, stop)
                else:
                    console.print(f"exists already: {layout.corpus / archive.subset}", markup=False)
            if labels:
                _download_labels(layout, options, console, stop)
    except StoppedError as stopped:
        name = signal.Signals(stopped.signal_number).name
        message = f"stopped by {name}. Finished downloads are kept; run the same command to resume"
        fail(message, exit_code(stopped.signal_number))
    more = f" {layout.root} data/librispeech --subsets {' '.join(archive.subset for archive in archives)}"
    is_default = labels and layout.root == DEFAULT_ROOT  # which simdist.pack finds by itself
    console.print(f"next: python -m simdist.pack librispeech{'' if is_default else more}", markup=False)
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(prog="python -m simdist.download", description=DESCRIPTION)
    add = parser.add_argument
    subsets = f"Subsets to download, of those that --list shows. Default: {LABELED_SUBSET}."
    mirror = f"Mirrors in order of preference: {', '.join(MIRRORS)}, or addresses. Default: all, in this order."
    add("corpus", type=str | None, nargs="?", metavar="CORPUS", help="Corpus to download: librispeech.")
    add("subsets", type=str, nargs="*", default=[LABELED_SUBSET], metavar="SUBSET", help=subsets)
    add("--to", type=Path, default=DEFAULT_ROOT, help="Folder for the corpus. simdist.pack finds it in the default.")
    add("--mirror", type=str, nargs="+", default=list(MIRRORS), help=mirror)
    add("--no-labels", action="store_true", help=f"Skip CPC's splits and phone labels of {LABELED_SUBSET}.")
    add("--splits-url", type=str | None, help="Address of a folder with {train,test}_split.txt, instead of CPC's.")
    add("--phones-url", type=str | None, help="Address of converted_aligned_phones.txt or its zip, instead of CPC's.")
    add("--keep-archives", action="store_true", help="Keep SUBSET.tar.gz after unpacking.")
    add("--retries", type=int, default=5, help="Failed attempts in a row before the next mirror is tried.")
    add("--timeout", type=float, default=30.0, help="Seconds of silence before a connection is retried.")
    add("--list", action="store_true", help="List the subsets, their sizes and which exist; download nothing.")
    return parser


def _check(options: Namespace) -> None:
    """Raise InputError if an option has an impossible value."""
    if options.corpus != "librispeech":
        unknown = f"unknown corpus {options.corpus!r}" if options.corpus else "CORPUS is missing"
        raise InputError(f"{unknown}; the only one is librispeech, and --list shows its subsets")
    for name in options.subsets:
        if name not in SUBSETS:
            raise InputError(f"unknown subset {name!r}: {did_you_mean(name, list(SUBSETS))}")
    for name in options.mirror:
        if name not in MIRRORS and not name.startswith(SCHEMES):
            either = f"neither one of {', '.join(MIRRORS)} nor"
            raise InputError(f"--mirror {name!r} is {either} an address that begins with https:// or http://")
    for option, url in (("--splits-url", options.splits_url), ("--phones-url", options.phones_url)):
        if url is not None and not url.startswith(SCHEMES):
            raise InputError(f"{option} {url!r} is not an address; it must begin with https:// or http://")
    if options.retries < 0:
        raise InputError(f"--retries is {options.retries}; it must be at least 0")
    if options.timeout <= 0:
        raise InputError(f"--timeout is {options.timeout:g}; it must be more than 0 seconds")


def _list(layout: Layout, console: Console) -> None:
    console.print(f"{'subset':<16} {'archive':>9} {'unpacked':>9} {'hours':>6} {'utterances':>11}")
    for archive in SUBSETS.values():
        sizes = f"{archive.size / 1e9:>6.2f} GB {archive.unpacked / 1e9:>6.2f} GB"
        there = f"  in {layout.corpus}" if (layout.corpus / archive.subset).is_dir() else ""
        line = f"{archive.subset:<16} {sizes} {archive.hours:>6.1f} {archive.utterances:>11,}{there}"
        console.print(line, markup=False)


def _require_room(layout: Layout, needed: int) -> None:
    free = shutil.disk_usage(layout.root).free
    if needed > free:
        raise FailedError(
            f"{layout.root} has {free:,} bytes free, and the archives and their content need {needed:,}. Free "
            f"{needed - free:,} more, name fewer subsets, or choose another --to"
        )


def bytes_needed(layout: Layout, missing: Sequence[Archive], keep_archives: bool) -> int:
    """Peak disk space in bytes, beyond what is occupied now."""
    taken = most = 0
    for archive in missing:
        path = layout.root / archive.name
        have = size_of(path) or size_of(part_of(path))
        most = max(most, taken + archive.size - have + archive.unpacked)
        taken += archive.unpacked + (archive.size if keep_archives else 0) - have
    return max(most, 0)


def _download_subset(
    layout: Layout, archive: Archive, options: Namespace, console: Console, stop: SignalHandler
) -> None:
    """Download, verify and unpack one subset; an existing archive is only verified."""
    path = layout.root / archive.name
    fault = partial(_md5_fault, md5=archive.md5, console=console, stop=stop)
    if path.is_file() and (wrong := fault(path)):
        console.print(f"{path} {wrong.removeprefix('gave a file ')}: downloading it again", markup=False)
        path.unlink()
    if not path.is_file():
        file = WebFile(path, archive.size, fault, console, stop, options.retries, options.timeout)
        mirrors = [MIRRORS[name] if name in MIRRORS else name.rstrip("/") for name in options.mirror]
        file.fetch([f"{mirror}/{archive.name}" for mirror in mirrors], REMEDY)
    unpack(path, archive, layout.corpus, console, stop)
    if not options.keep_archives:
        path.unlink()
    console.print(f"{layout.corpus / archive.subset}: {archive.utterances:,} utterances", markup=False)


def _md5_fault(path: Path, md5: str, console: Console, stop: SignalHandler) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, transfer(console, f"verifying {path.name}", path.stat().st_size) as at:
        while chunk := file.read(1 << 20):
            stop.check()
            digest.update(chunk)
            at(file.tell())
    found = digest.hexdigest()
    return "" if found == md5 else f"gave a file with md5 {found}, not {md5}"


def _download_labels(layout: Layout, options: Namespace, console: Console, stop: SignalHandler) -> None:
    """Download the splits and phone labels that are missing."""
    layout.splits.mkdir(parents=True, exist_ok=True)
    remedy = (
        f"--no-labels leaves the labels out; by hand, put the files of {LABELS_FOLDER} in {layout.splits} (splits) "
        f"and {layout.phones.parent} (phones, unzipped)"
    )
    for path in (*layout.lists, layout.phones):
        if path.is_file():
            continue
        if path == layout.phones:
            own, said = options.phones_url, "phone labels of {:,} utterances"
            fault = partial(label_fault, shape=PHONES_LINE, meant="an utterance id and its classes")
        else:
            own, said = options.splits_url and f"{options.splits_url.rstrip('/')}/{path.name}", "{:,} utterance ids"
            fault = partial(label_fault, shape=SPLITS_LINE, meant="an utterance id")
        file = WebFile(path, None, fault, console, stop, options.retries, options.timeout)
        file.fetch([own] if own else LABELS[path.name], remedy)
        with path.open("rb") as lines:
            console.print(f"{path}: {said.format(sum(1 for _ in lines))}", markup=False)


if __name__ == "__main__":
    run(main)
