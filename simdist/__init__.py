"""Distributed training of self-supervised speech encoders: Smooth InfoMax, Greedy InfoMax, CPC."""

from __future__ import annotations

import signal
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simdist.loading import load_decoder, load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_decoder", "load_encoder"]

_IS_COMMAND = any(option == "-m" and name.partition(".")[0] == "simdist" for option, name in pairwise(sys.orig_argv))
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While a command of ours imports what it needs, Ctrl-C ends it without a traceback; `console.run` answers it later
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name: str) -> Any:
    """Import torch only to load a model, so that the launcher and `--help` start without it."""
    if name in ("load_decoder", "load_encoder"):
        from simdist import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'simdist' has no attribute {name!r}")
