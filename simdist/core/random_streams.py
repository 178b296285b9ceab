"""Seeds of random number streams, by what they are for; independent of processes and order."""

from __future__ import annotations

import hashlib


def stream_seed(*names: int | str) -> int:
    """A 63-bit seed for the random numbers that `names` identify: (seed, step, rank, module), say."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
