"""Addresses of LibriSpeech, CPC's splits and phone labels, with the sizes and checksums of the archives.

Sizes and md5 sums are those of https://www.openslr.org/resources/12/md5sum.txt; docs/explanation/decisions.md
has the source of each address.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from simdist.core.errors import InputError

DEFAULT_SUBSET = "train-clean-100"
LABELED_SUBSET = "train-clean-100"
"""The subset of CPC's splits and phone labels."""


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
TRAIN_SPLIT, TEST_SPLIT, PHONES = "train_split.txt", "test_split.txt", "converted_aligned_phones"
LABELS = {
    TRAIN_SPLIT: (f"{_DRIVE}1ubREoLQu47_ZDn39YWv1wvVPe2ZlIZAb", f"{_S3PRL}/{TRAIN_SPLIT}"),
    TEST_SPLIT: (f"{_DRIVE}1vSHmncPsRY7VWWAd_BtoWs9-fQ5cBrEB", f"{_S3PRL}/{TEST_SPLIT}"),
    PHONES: (f"{_DRIVE}1bLuDkapGBERG_VYPS7fNZl5GXsQ9z3p2", f"{_S3PRL}/{PHONES}.zip"),
}
"""Addresses of each label file, in the order in which they are tried."""


def wanted_archives(subsets: Sequence[str]) -> list[Archive]:
    """The archives of these subsets, without duplicates.

    Raises:
        InputError: unknown subset; names the closest one and all.
    """
    unknown = [name for name in subsets if name not in SUBSETS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], SUBSETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown subset {unknown[0]!r}: {hint}the subsets are {', '.join(SUBSETS)}")
    return [SUBSETS[name] for name in dict.fromkeys(subsets)]


def mirror_addresses(mirrors: Sequence[str]) -> list[str]:
    """Base addresses of mirrors given by name or address; all known ones by default.

    Raises:
        InputError: one is neither a known name nor an http(s) address.
    """
    for mirror in mirrors:
        if mirror not in MIRRORS and not is_address(mirror):
            names = ", ".join(MIRRORS)
            raise InputError(
                f"--mirror {mirror!r} is neither one of {names} nor an address that begins with https:// or http://"
            )
    return [MIRRORS.get(mirror, mirror).rstrip("/") for mirror in mirrors or MIRRORS]


def is_address(text: str) -> bool:
    return text.startswith(("https://", "http://"))
