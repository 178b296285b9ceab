"""espeak-ng's English phonemes as the 41 classes of the phone labels.

A mnemonic that is two sounds in one is given two classes, which share its time. Vowels before a written r keep their R
in every accent, as in the pronouncing dictionary on which LibriSpeech's own labels rest.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from simdist.data.labels import PHONE_WINDOW, PHONES, num_phone_frames
from simdist.data.splits import PHONE_HOP

_CLASSES = {
    "_": "SIL", "_:": "SIL", "_!": "SIL", "_|": "SIL", "_^_": "SIL",
    "p": "P", "b": "B", "t": "T", "t#": "T", "t[": "T", "t2": "T", "?": "T", "d": "D", "d#": "D", "d[": "D",
    "k": "K", "x": "K", "g": "G", "tS": "CH", "dZ": "JH",
    "f": "F", "v": "V", "T": "TH", "D": "DH", "s": "S", "z": "Z", "S": "SH", "Z": "ZH", "h": "HH", "C": "HH",
    "m": "M", "n": "N", "N": "NG", "m-": "AH M", "n-": "AH N",
    "l": "L", "l#": "L", "L": "L", "r": "R", "r-": "R", "R": "R", "w": "W", "w#": "W", "j": "Y", "@L": "AH L",
    "a": "AE", "aa": "AE", "a#": "AH", "A:": "AA", "A": "AA", "0": "AA", "O": "AO", "O2": "AO", "O:": "AO",
    "@": "AH", "@2": "AH", "@5": "AH", "@-": "AH", "V": "AH", "E": "EH", "E2": "EH", "E#": "EH",
    "I": "IH", "I2": "IH", "I#": "IH", "i": "IY", "i:": "IY", "U": "UH", "u": "UW", "u:": "UW",
    "3": "ER", "3:": "ER", "IR": "ER", "VR": "ER", "@r": "ER", "U2": "UH",
    "eI": "EY", "e": "EY", "aI": "AY", "aI2": "AY", "aI3": "AY", "OI": "OY", "aU": "AW", "oU": "OW", "o": "OW",
    "A@": "AA R", "O@": "AO R", "o@": "AO R", "e@": "EH R", "U@": "UH R", "i@3": "IH R", "i@": "IY AH",
    "aI@": "AY ER", "aU@": "AW ER",
}  # fmt: skip
_STRESS = "',%=|"
_CONTINUES = {";", ""}  # the glide between two vowels (three oysters), and bare stress: more of the sound before


def classes_of(mnemonic: str) -> tuple[str, ...]:
    """Names of the classes of one phoneme, in order; `SPN` where it is not known."""
    plain = mnemonic.lstrip(_STRESS)
    for name in (plain, plain.rstrip("0123456789#-[]~"), plain.rstrip(":")):
        if name in _CLASSES:
            return tuple(_CLASSES[name].split())
    return ("SPN",)


def frame_classes(phonemes: Iterable[tuple[str, float]], num_samples: int) -> npt.NDArray[np.uint8]:
    """One class for each 10 ms of an utterance: that of the sound in the middle of the frame's 25 ms window.

    Args:
        phonemes: mnemonic and the sample at 16 kHz at which it begins, in order; before the first is silence.
        num_samples: of the utterance at 16 kHz.

    Returns:
        Classes, (1 + (num_samples - 400) // 160,).
    """
    begins, names = [0.0], ["SIL"]
    pairs = [(m, begin) for m, begin in phonemes if m.lstrip(_STRESS) not in _CONTINUES]
    ends = [begin for _, begin in pairs[1:]] + [float(num_samples)]
    for (mnemonic, begin), end in zip(pairs, ends, strict=True):
        classes = classes_of(mnemonic)
        for i, name in enumerate(classes):
            begins.append(begin + i * (end - begin) / len(classes))
            names.append(name)
    middles = PHONE_WINDOW / 2 + PHONE_HOP * np.arange(num_phone_frames(num_samples))
    segments = np.searchsorted(np.array(begins), middles, side="right") - 1
    return np.array([PHONES.index(name) for name in names], dtype=np.uint8)[segments]
