"""Words of messages."""

from __future__ import annotations

from simdist.core.errors import counted


def test_one_is_singular() -> None:
    assert [counted(number, "clip") for number in (0, 1, 2, 1234)] == ["0 clips", "1 clip", "2 clips", "1,234 clips"]
