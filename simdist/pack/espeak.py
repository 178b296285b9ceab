"""Speech and exact phoneme times from espeak-ng, spoken by a process of its own.

espeak-ng carries its noise generator and oscillators over from one sentence to the next, and neither Terminate and
Initialize, nor SetRandSeed, nor srand resets them (tried). So a `Voice` is a fresh process that speaks sentences in
order: the same voice saying the same sentences gives the same samples. This file is that process too: run as a script
it needs only the standard library and espeakng_loader, and starts in some 50 ms.

    stdin:  one JSON line a sentence    stdout: one JSON line {"num_bytes", "phonemes"}, then 16-bit mono PCM
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

RATE = 22_050  # Hz

_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 0x0001, 0x8000  # espeak_Initialize
_UTF8 = 1  # espeak_Synth
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3  # espeak_SetParameter
_LIST_END, _PHONEME = 0, 7  # espeak_EVENT_TYPE


def is_installed() -> bool:
    return importlib.util.find_spec("espeakng_loader") is not None


@dataclass(frozen=True)
class Speech:
    """A spoken sentence."""

    pcm: bytes
    """16-bit mono at `RATE`."""
    phonemes: list[tuple[str, int]]
    """espeak's mnemonic of each phoneme, and the sample at which it begins."""


class Voice:
    """A speaker; use it in a `with` block."""

    def __init__(self, name: str, pitch: int, rate: int) -> None:
        """Start the process.

        Args:
            name: accent and variant, such as `en-us+f3`.
            pitch: 0 to 100; 50 is the variant's own.
            rate: words a minute.
        """
        self.settings = {"voice": name, "pitch": pitch, "rate": rate}
        environment = os.environ | {"PYTHONSAFEPATH": "1"}  # this folder's modules must not hide others
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )

    def log(self, text: str) -> Speech:
        """Speak one sentence after those before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**self.settings, "text": text}).encode() + b"\n")
        self._process.stdin.flush()
        header = self._process.stdout.readline()
        if not header:
            raise RuntimeError(f"espeak-ng ended with exit code {self._process.wait()} at {text!r}")
        spoken = json.loads(header)
        return Speech(self._process.stdout.read(spoken["num_bytes"]), [(m, s) for m, s in spoken["phonemes"]])

    def __enter__(self) -> Voice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


# --- the speaking process ---------------------------------------------------------------------------------------------


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    def __init__(self) -> None:
        import espeakng_loader

        self.pcm = bytearray()
        self.phonemes: list[tuple[str, int]] = []
        self.espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        rate = self.espeak.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DONT_EXIT)
        if rate != RATE:
            raise RuntimeError(f"espeak-ng gives {rate} Hz, or an error; {RATE} is expected")
        self.callback = _Callback(self._receive)  # must outlive the library's use of it
        self.espeak.espeak_SetSynthCallback(self.callback)

    def log(self, voice: str, pitch: int, rate: int, text: str) -> None:
        self.pcm.clear()
        self.phonemes.clear()
        self._call("espeak_SetVoiceByName", voice.encode())
        self._call("espeak_SetParameter", _PARAMETER_RATE, rate, 0)
        self._call("espeak_SetParameter", _PARAMETER_PITCH, pitch, 0)
        spoken = text.encode()
        self._call("espeak_Synth", spoken, ctypes.c_size_t(len(spoken) + 1), 0, 1, 0, _UTF8, None, None)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.espeak, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}{arguments} failed with code {code}")

    def _receive(self, pcm: Any, num_samples: int, events: Any) -> int:
        if pcm and num_samples > 0:
            self.pcm += ctypes.string_at(pcm, 2 * num_samples)
        i = 0
        while events[i].type != _LIST_END:
            if events[i].type == _PHONEME:
                self.phonemes.append((events[i].id.string.decode(errors="replace"), events[i].sample))
            i += 1
        return 0


def _serve() -> None:
    library = _Library()
    for line in sys.stdin:
        library.log(**json.loads(line))
        header = {"num_bytes": len(library.pcm), "phonemes": library.phonemes}
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + library.pcm)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
