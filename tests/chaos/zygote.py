"""A process that has imported torch, and forks those that the faults hit: `python -m tests.chaos.zygote`.

It reads one JSON line a request: `{"order": …}` starts a process and is answered by its pid, `{"ended": pid}` by its
exit code, or null while it lives. What it forks is a real process, with files, workers and signals of its own; only
the four seconds of importing torch are saved.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

PRELOAD = (
    *("torch", "torch._dynamo", "torch.distributed.tensor"),  # the last two are imported when an optimizer is made
    *("accelerate", "simdist.train", "simdist.training.lifecycle", "simdist.train.encoder_task"),
)


def main() -> None:
    """Serve until the harness closes the pipe; a child leaves by the command's own exit."""
    for name in PRELOAD:
        importlib.import_module(name)
    from tests.chaos.child import Order, obey

    while line := sys.stdin.readline():
        request = json.loads(line)
        if "order" in request:
            answer = os.fork()
            if answer == 0:
                obey(Order(**request["order"]))
        else:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
