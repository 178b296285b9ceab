"""Seeds of random number streams, identified by their purpose, independent of processes and order."""

from __future__ import annotations

import hashlib


def stream_seed(*names: int | str) -> int:
    """A 63-bit seed for the random numbers identified by `names`, such as (seed, step, rank, module)."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
