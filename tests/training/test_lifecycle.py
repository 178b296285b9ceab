"""Which errors of collectives mean that another rank has ended."""

from __future__ import annotations

import pytest

from simdist.core.errors import PeerLostError
from simdist.training.lifecycle import naming_a_lost_peer

GONE = "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:4711. Check the logs."
OF_THE_PROGRAM = "[enforce fail at /pytorch/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"


def test_a_peer_that_has_gone_is_named() -> None:
    said = r"another rank has ended \(Connection closed by peer \[10.0.0.2\]:4711\);"
    with pytest.raises(PeerLostError, match=said), naming_a_lost_peer(2):
        raise RuntimeError(GONE)


@pytest.mark.parametrize(("ranks", "text"), [(2, OF_THE_PROGRAM), (2, "NCCL error: invalid usage"), (1, GONE)])
def test_other_errors_keep_their_traceback(ranks: int, text: str) -> None:
    with pytest.raises(RuntimeError, match=r"gloo|NCCL"), naming_a_lost_peer(ranks):
        raise RuntimeError(text)
