"""Phone labels: their classes, and which samples each describes. Labels that say where an utterance was recorded."""

from __future__ import annotations

PHONES = [
    "SIL", "SPN", "S", "UW", "T", "N", "K", "Y", "Z", "AO", "AY", "SH", "W", "NG", "EY", "B", "CH", "OY", "JH", "D",
    "ZH", "G", "UH", "F", "V", "ER", "AA", "IH", "M", "DH", "L", "AH", "P", "OW", "AW", "HH", "AE", "R", "TH", "IY",
    "EH",
]  # fmt: skip
"""Names of the 41 classes in `converted_aligned_phones.txt`, in the order of their numbers."""


SESSION = "session"
"""The label of recording sessions: nothing that a probe is asked for unless it is named."""

PHONE_WINDOW = 400  # samples that the first phone label describes: a 25 ms window


PHONE_TOLERANCE = 3  # frames by which a line of labels may differ from the audio


def num_phone_frames(num_samples: int) -> int:
    """How many 10 ms labels describe `num_samples` at 16 kHz."""
    return max(0, 1 + (num_samples - PHONE_WINDOW) // 160)
