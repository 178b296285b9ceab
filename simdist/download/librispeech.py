"""LibriSpeech, CPC's splits and phone labels: where they are on the web, and on disk for simdist.pack.

Sizes and md5 sums are those of https://www.openslr.org/resources/12/md5sum.txt; docs/explanation/decisions.md
has the source of each address. On disk:

ROOT/LibriSpeech/SUBSET/…, ROOT/labels/train-clean-100/{train,test}_split.txt, ROOT/labels/converted_aligned_phones.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simdist.core.errors import InputError

DEFAULT_ROOT = Path("data/corpora")
LABELED_SUBSET = "train-clean-100"
"""The subset of CPC's splits and phone labels, and the one that is downloaded by default."""


@dataclass(frozen=True)
class Archive:
    """One subset as openslr.org publishes it."""

    subset: str
    size: int
    """Bytes of SUBSET.tar.gz."""
    md5: str
    utterances: int
    hours: float

    @property
    def name(self) -> str:
        return f"{self.subset}.tar.gz"

    @property
    def unpacked(self) -> int:
        """Approximate bytes after unpacking: FLAC hardly compresses, and each file ends in a half-empty block."""
        return round(1.02 * self.size) + 4096 * self.utterances


SUBSETS = {
    archive.subset: archive
    for archive in (
        Archive("dev-clean", 337_926_286, "42e2234ba48799c1f50f24a7926300a1", 2_703, 5.4),
        Archive("dev-other", 314_305_928, "c8d0bcc9cca99d4f8b62fcc847357931", 2_864, 5.1),
        Archive("test-clean", 346_663_984, "32fa31d27d2e1cad72775fee3f4849a9", 2_620, 5.4),
        Archive("test-other", 328_757_843, "fb5a50374b501bb3bac4815ee91d3135", 2_939, 5.3),
        Archive("train-clean-100", 6_387_309_499, "2a93770f6d5c6c964bc36631d331a522", 28_539, 100.6),
        Archive("train-clean-360", 23_049_477_885, "c0e676e450a7ff2f54aeade5171606fa", 104_014, 363.6),
        Archive("train-other-500", 30_593_501_606, "d1a0fd59409feb2c614ce4d30c387708", 148_688, 496.7),
    )
}

MIRRORS = {
    "openslr": "https://www.openslr.org/resources/12",
    "us": "https://us.openslr.org/resources/12",
    "eu": "https://openslr.elda.org/resources/12",
    "cn": "https://openslr.magicdatatech.com/resources/12",
}

LABELS_FOLDER = "https://drive.google.com/drive/folders/1BhJ2umKH3whguxMwifaKtSra0TgAbtfb"
"""Where the authors of CPC published splits and phones, for a browser."""
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_S3PRL = (
    "https://raw.githubusercontent.com/s3prl/s3prl/71a4cd575cbe2c6f4be656a92c6f6665d699b108"
    "/s3prl/downstream/phone_linear/data"
)
TRAIN_SPLIT, TEST_SPLIT, PHONES = "train_split.txt", "test_split.txt", "converted_aligned_phones.txt"
LABELS = {
    TRAIN_SPLIT: (f"{_DRIVE}1ubREoLQu47_ZDn39YWv1wvVPe2ZlIZAb", f"{_S3PRL}/{TRAIN_SPLIT}"),
    TEST_SPLIT: (f"{_DRIVE}1vSHmncPsRY7VWWAd_BtoWs9-fQ5cBrEB", f"{_S3PRL}/{TEST_SPLIT}"),
    PHONES: (f"{_DRIVE}1bLuDkapGBERG_VYPS7fNZl5GXsQ9z3p2", f"{_S3PRL}/converted_aligned_phones.zip"),
}
"""Addresses of each label file, in the order in which they are tried."""
SPLITS_LINE = r"\d+-\d+-\d+"
PHONES_LINE = r"\d+-\d+-\d+( \d+)+ ?"


class Layout:
    """Paths of audio and labels below one folder."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self.root, self.corpus = root, root / "LibriSpeech"
        self.splits = root / "labels" / LABELED_SUBSET
        self.lists = self.splits / TRAIN_SPLIT, self.splits / TEST_SPLIT
        self.phones = root / "labels" / PHONES

    def has_labels(self) -> bool:
        """Whether both of CPC's splits and the phone labels exist."""
        return all(path.is_file() for path in (*self.lists, self.phones))

    def has(self, archive: Archive) -> bool:
        """Whether a subset exists.

        Raises:
            InputError: its folder has fewer utterances, so it was not unpacked by simdist.
        """
        folder = self.corpus / archive.subset
        found = num_utterances(folder)
        if folder.exists() and found != archive.utterances:
            raise InputError(
                f"{folder} has {found:,} of {archive.utterances:,} utterances. simdist.download unpacks a subset whole "
                "or not at all, so it did not write this folder. Remove it, or choose another --to"
            )
        return found > 0


def num_utterances(subset: Path) -> int:
    """Number of .flac files in a subset's folder; 0 if there is none."""
    return sum(1 for _ in subset.glob("*/*/*.flac"))
