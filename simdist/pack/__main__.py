"""Pack a corpus into WebDataset shards: `python -m simdist.pack CORPUS SOURCE OUT`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from simdist.config.parser import Parser
from simdist.core.console import fail, run
from simdist.core.errors import EXIT_FAILED, EXIT_OK, InputError, counted
from simdist.core.signals import SignalHandler, StoppedError, exit_code
from simdist.data.splits import open_split
from simdist.download.librispeech import DEFAULT_ROOT, LABELED_SUBSET, Layout
from simdist.pack import folders, packing, verifying
from simdist.pack.artificial_speech import artificial_speech
from simdist.pack.corpora import Corpus
from simdist.pack.librispeech import TEST_FRACTION, SplitLists, librispeech
from simdist.pack.packing import Options, PackedSplit
from simdist.pack.shards import PackingError
from simdist.pack.synthetic import Parameters, generate, planned

DEFAULT_OUT = Path("data/librispeech")

_ABOUT = """Pack a corpus into WebDataset shards with an index and a manifest, for simdist.train.

  python -m simdist.pack synthetic data/made data/synthetic
  python -m simdist.pack librispeech
  python -m simdist.pack librispeech /corpora/LibriSpeech data/librispeech --subsets train-clean-100
  python -m simdist.pack artificial-speech /corpora/artificial data/artificial --encoding wav

Files that cannot be decoded, or have NaN or infinite samples, are left out and listed in report.json. Short, silent and
clipped ones are listed and packed. Run the same command again to resume after an interruption.

Exit codes: 0 finished; 1 disk full, or damage found by --verify; 2 wrong input, or problems with --strict; 75 preempted
(run the same command again to resume); 130 stopped with Ctrl-C."""

_LIBRISPEECH = f"""Pack LibriSpeech (SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac) into the splits train and test.

  python -m simdist.pack librispeech
  python -m simdist.pack librispeech /corpora/LibriSpeech data/librispeech --subsets train-clean-100 \\
      --train-split train_split.txt --test-split test_split.txt --phones converted_aligned_phones.txt
  python -m simdist.pack librispeech /corpora/LibriSpeech data/all --test-fraction 0.05 --workers 16

Without SOURCE and OUT, {DEFAULT_ROOT} (of simdist.download) is packed into {DEFAULT_OUT}: {LABELED_SUBSET} with
CPC's splits and phone labels if they exist, otherwise every subset."""

_ARTIFICIAL = """Pack Bart de Boer's artificial speech, at 16 kHz: words into train and test, syllables into
syllables_train and syllables_test (the published split: one recording session each) and, of both sessions, into
syllables_reshuffled_train and syllables_reshuffled_test (80 and 20 %). To choose among configurations without a look at
the test, syllables_reshuffled_fit and syllables_reshuffled_validation divide the former of these in the same way.
SOURCE is the folder that its archive unpacks to, with `reshuffledv2` (words) and `split up data padded` (syllables).

  python -m simdist.pack artificial-speech /corpora/artificial data/artificial --encoding wav"""

_SYNTHETIC = """Synthesize a corpus with espeak-ng, with speakers and exact phone labels. Its audio is written to
SOURCE, in LibriSpeech's layout, and then packed into OUT. The same options give the same corpus, bit for bit.

  python -m simdist.pack synthetic data/made data/synthetic
  python -m simdist.pack synthetic data/large data/large_packed --speakers 40 --minutes 600"""

_IN_SHORT = {
    "librispeech": "LibriSpeech, or a corpus in its layout.",
    "artificial-speech": "Bart de Boer's artificial speech: words and syllables.",
    "synthetic": "Synthetic speech (espeak-ng) with exact phone labels.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, pack, and print a summary; returns the exit code."""
    parsed = _parser().parse_args(argv)
    corpus_name, arguments = parsed.corpus, parsed[parsed.corpus]
    console = Console(soft_wrap=True, highlight=False)
    if corpus_name == "librispeech":
        _fill_in(arguments, console)
    out = Path(arguments.OUT)
    stop = SignalHandler()
    try:
        with stop.installed():
            options = Options(
                encoding=arguments.encoding,
                shard_samples=arguments.shard_samples,
                workers=arguments.workers,
                min_samples=arguments.min_samples,
                strict=arguments.strict,
                overwrite=arguments.overwrite,
                verify=arguments.verify,
            )
            folders.require_usable(Path(arguments.SOURCE), out)
            corpus = _planned(corpus_name, arguments, console, stop)
            stop.check()
            for note in corpus.notes:
                console.print(f"note: {escape(note)}")
            splits = packing.pack(corpus, out, options, console, stop)
            damaged = arguments.verify and _verified(splits, out, options, console, stop)
    except StoppedError as stopped:
        name = signal.Signals(stopped.signal_number).name
        message = f"stopped by {name}. Finished shards are kept; run the same command to resume"
        fail(message, exit_code(stopped.signal_number))
    except PackingError as error:
        fail(str(error), EXIT_FAILED)
    _summarize(splits, out, corpus_name, console)
    return EXIT_FAILED if damaged else EXIT_OK


# --- command line -----------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(prog="python -m simdist.pack", description=_ABOUT)
    commands = parser.add_subcommands(dest="corpus", metavar="CORPUS")
    for name, about, source, min_samples in (
        ("librispeech", _LIBRISPEECH, "Folder of the subsets, or one subset.", 20_480),
        ("artificial-speech", _ARTIFICIAL, "Folder of the unpacked archive, with `reshuffledv2` in it.", 8_000),
        (
            "synthetic",
            _SYNTHETIC,
            "Folder to write the synthesized audio to, an output like OUT; it may exist from an earlier call.",
            20_480,
        ),
    ):
        sub = Parser(description=about)
        optional = {"nargs": "?", "default": None} if name == "librispeech" else {}
        sub.add_argument("SOURCE", type=str, help=source, **optional)
        sub.add_argument("OUT", type=str, help="Folder for the packed splits, the --data.root of training.", **optional)
        _SPECIFIC[name](sub)
        _add_common(sub, min_samples)
        commands.add_subcommand(name, sub, help=_IN_SHORT[name])
        sub.prog = f"{parser.prog} {name}"  # add_subcommand sets one with "[options]" in it
    return parser


def _add_librispeech(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--subsets",
        type=str,
        nargs="+",
        default=None,
        help="Subsets to pack, such as dev-clean test-clean. Default: all.",
    )
    add(
        "--train-split",
        type=str | None,
        default=None,
        help="File with the utterance ids to train on, one per line; needs --test-split.",
    )
    add(
        "--test-split",
        type=str | None,
        default=None,
        help="File with the utterance ids to test on, one per line; needs --train-split.",
    )
    fraction = (
        f"Without --train-split: fraction of each speaker's utterances for the test split. Default: {TEST_FRACTION:g}."
    )
    add("--test-fraction", type=float | None, default=None, help=fraction)
    add(
        "--phones",
        type=str | None,
        default=None,
        help="File with an utterance id and its phone classes, one per 10 ms, per line: converted_aligned_phones.txt.",
    )


def _add_synthetic(parser: Parser) -> None:
    defaults = Parameters()
    parser.add_argument("--speakers", type=int, default=defaults.speakers, help="Number of voices.")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="Total minutes of speech.")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="Seed of the corpus.")


_SPECIFIC = {
    "librispeech": _add_librispeech,
    "artificial-speech": lambda parser: None,
    "synthetic": _add_synthetic,
}


def _add_common(parser: Parser, min_samples: int) -> None:
    add = parser.add_argument
    add(
        "--encoding",
        type=Literal["flac", "wav"],
        default="flac",
        help="Encoding of the audio in the shards: flac is smaller, wav (16 bit) is faster to read.",
    )
    add("--shard-samples", type=int, default=256, help="Number of utterances per shard.")
    add("--workers", type=int, default=_num_cpus(), help="Number of processes. Default: number of CPUs.")
    add(
        "--min-samples",
        type=int,
        default=min_samples,
        help="Report utterances shorter than this, in samples at 16 kHz.",
    )
    add("--strict", action="store_true", help="Treat any reported problem as an error (exit code 2).")
    add("--overwrite", action="store_true", help="Replace complete splits in OUT.")
    add(
        "--verify",
        action="store_true",
        help="Check the sha256 of each shard and compare each sample with its source, including existing shards.",
    )


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _planned(name: str, arguments: Any, console: Console, stop: SignalHandler) -> Corpus:
    source = Path(arguments.SOURCE)
    if name == "artificial-speech":
        return artificial_speech(source)
    if name == "synthetic":
        parameters = Parameters(arguments.speakers, arguments.minutes, arguments.seed)
        generate(source, parameters, arguments.workers, console, stop)
        return planned(source, parameters)
    if (arguments.train_split is None) != (arguments.test_split is None):
        given = "--train-split" if arguments.test_split is None else "--test-split"
        raise InputError(f"{given} is given without the other list. Give both, or neither to use --test-fraction")
    test_fraction = TEST_FRACTION if arguments.test_fraction is None else arguments.test_fraction
    if not 0 <= test_fraction < 1:
        raise InputError(f"--test-fraction is {test_fraction:g}; it must be at least 0 and less than 1")
    lists = SplitLists(Path(arguments.train_split), Path(arguments.test_split)) if arguments.train_split else None
    phones = Path(arguments.phones) if arguments.phones else None
    return librispeech(source, _subsets(arguments), lists, test_fraction, phones)


def _subsets(arguments: Any) -> list[str]:
    return re.findall(r"[^\s,]+", " ".join(arguments.subsets or []))  # separated by spaces or commas


def _fill_in(arguments: Any, console: Console) -> None:
    """Without SOURCE and OUT, take what simdist.download wrote; options on the command line stay."""
    if arguments.OUT is not None:
        return
    if arguments.SOURCE is not None:
        raise InputError("OUT is missing. Give SOURCE and OUT, or neither to pack what simdist.download wrote")
    layout, subsets = Layout(), _subsets(arguments)
    if not layout.corpus.is_dir():
        raise InputError(
            f"SOURCE is missing, and {layout.corpus} does not exist. Run `python -m simdist.download librispeech` "
            "first, or give SOURCE and OUT"
        )
    arguments.SOURCE, arguments.OUT = str(layout.root), str(DEFAULT_OUT)
    is_labeled = set(subsets) == {LABELED_SUBSET} if subsets else (layout.corpus / LABELED_SUBSET).is_dir()
    has_lists = is_labeled and all(path.is_file() for path in layout.lists)
    has_phones = is_labeled and layout.phones.is_file()
    if has_lists or has_phones:
        arguments.subsets = [LABELED_SUBSET]
    taken = []
    if has_lists and not (arguments.train_split or arguments.test_split or arguments.test_fraction is not None):
        arguments.train_split, arguments.test_split = taken = [str(path) for path in layout.lists]
    if has_phones and not arguments.phones:
        arguments.phones = str(layout.phones)
        taken = [*taken, arguments.phones]
    console.print(f"packing {escape(str(layout.corpus))}{' with ' * bool(taken)}{escape(', '.join(taken))}")


# --- what is printed --------------------------------------------------------------------------------------------------


def _verified(splits: list[PackedSplit], out: Path, options: Options, console: Console, stop: SignalHandler) -> bool:
    """Whether damage was found."""
    problems = verifying.verify(
        out, [s.plan.name for s in splits], options.workers, console, stop, [s.plan for s in splits]
    )
    for problem in problems[:20]:
        console.print(f"  [red]{escape(problem.path)}[/]: {escape(problem.reason)}")
    if problems:
        console.print(
            f"[red]{counted(len(problems), 'problem')}[/]. Restore damaged sources and pack again with --overwrite"
        )
    else:
        console.print("verified: every shard matches its sha256, and every sample matches its source")
    return bool(problems)


def _summarize(splits: list[PackedSplit], out: Path, corpus: str, console: Console) -> None:
    for split in splits:
        opened = open_split(out, split.plan.name)
        manifest = opened.manifest
        minutes = manifest.num_seconds / 60
        length = f"{minutes / 60:.1f} h" if minutes >= 120 else f"{minutes:.1f} min"
        speakers = len(set(opened.index.labels["speaker"].tolist()))
        size = sum(shard["bytes"] for shard in manifest.shards)
        state = "already packed: " if split.was_complete else ""
        console.print(
            f"{state}[bold]{split.plan.name}[/]: {counted(manifest.num_samples, 'utterance')}, {length}, "
            f"{counted(speakers, 'speaker')}, {counted(len(manifest.shards), 'shard')}, "
            f"{size / 1e6:,.1f} MB {manifest.encoding} in {escape(str(split.folder))}"
        )
    others = sorted({p.parent.name for p in out.glob("*/manifest.json")} - {split.plan.name for split in splits})
    if others:
        console.print(f"note: {escape(str(out))} also has {', '.join(others)}, packed by another command")
    preset = "sim_artificial_speech" if corpus == "artificial-speech" else "sim_librispeech"
    command = f"accelerate launch -m simdist.train --config configs/{preset}.yaml --data.root {out}"
    console.print(f"next: {escape(command)}")


if __name__ == "__main__":
    run(main)
