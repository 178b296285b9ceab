"""Imported by the fork server that loader workers come from: they are deaf to signals, and find torch imported."""

from __future__ import annotations

from simdist.core.signals import ignore_signals

ignore_signals()

import simdist.data.loader  # noqa: E402, F401  # pyright: ignore[reportUnusedImport]
