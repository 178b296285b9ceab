"""How long a small run takes to its end, and whether it learns what the straightforward implementation learns.

    OMP_NUM_THREADS=2 python -m benchmarks.result --data.root data/artificial [--config configs/vgim_thesis.yaml]
        [--steps 60]

Both train from the same weights on the same batches with the same noise and negatives, step by step in turns; only
rounding tells their losses apart. The whole run's time is the loop's seconds a step, data and metrics included, times
its steps; `python -m simdist.train` with the same config takes the rest: start, validations and checkpoints.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import pairwise

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as simdist.train does, for both

import numpy as np
import torch

from benchmarks.memory import trainers_of
from benchmarks.outcomes import Outcome, show
from benchmarks.standin import Recorded, StandIn
from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config
from simdist.data.loader import BatchLoader, open_clips
from simdist.models.module import RandomInputs
from simdist.runs.schedule import Schedule
from simdist.training.random_streams import RandomStreams
from simdist.training.step import Step, train_step

MINUTES, DIFFERENCE, COMPARED = 10, 0.01, 20
WAITING = 5  # per cent of a step


def as_recorded(draws: RandomInputs, clips: int, frames: int) -> Recorded:
    """simdist's draws as the stand-in takes them: its context noise covers all frames."""
    noise = []
    if draws.context_noise is not None and draws.latent_noise is not None:
        everywhere = torch.zeros(clips, frames, draws.latent_noise.shape[2])
        everywhere[:, draws.start : draws.start + draws.context_noise.shape[1]] = draws.context_noise
        noise = [everywhere, draws.latent_noise]
    return Recorded(draws.start, noise, negatives=draws.negatives)


def train_both(config: Config, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each step, (3, steps), and InfoNCE of each module, (2, steps, modules): ours, then the stand-in's.

    The third row of seconds is the part of either that the step waited for its batch.
    """
    clips = open_clips(config.data, config.data.train_split)
    loader = BatchLoader(clips, config.data, config.seed, 0, 1, torch.device("cpu"))
    trainers, draws = trainers_of(config, torch.device("cpu")), RandomStreams(config.seed, 0, torch.device("cpu"))
    frames, table = config.model.num_frames(config.data.crop), Schedule(config, len(clips))
    standin = StandIn(config)
    for trainer, module in zip(trainers, standin.stack, strict=True):
        trainer.optimizer.state.clear()  # it has taken a step, with gradients of zero
        module.load_state_dict(trainer.module.state_dict())
    seconds, losses = np.zeros((3, steps)), np.zeros((2, steps, len(trainers)))
    batches = loader.batches(0, steps * config.data.batch_size)
    for number in range(steps):
        start = time.perf_counter()
        audio = next(batches).inputs
        loading = time.perf_counter() - start
        step = Step(number, table.lr(number), table.beta(number), measure=True)
        recorded = [
            as_recorded(draws.draw("train", number, trainer, len(audio), frames), len(audio), frames[trainer.number])
            for trainer in trainers
        ]
        times = [time.perf_counter()]
        outcome = train_step(trainers, audio, frames, step, draws)
        losses[0, number] = [metrics["nce"].item() for metrics in outcome.metrics]
        times.append(time.perf_counter())
        standin.optimizer.param_groups[0]["lr"] = step.lr
        losses[1, number] = standin.step(audio.transpose(1, 2).contiguous(), step.beta, recorded).tolist()
        times.append(time.perf_counter())
        seconds[:, number] = [*(loading + later - earlier for earlier, later in pairwise(times)), loading]
    return seconds, losses


def outcomes(config: Config, steps: int = 60) -> list[Outcome]:
    """Time to the end, and the largest difference of a module's InfoNCE before rounding has grown chaotic."""
    config = replace(config, data=replace(config.data, cache="memory"))
    seconds, losses = train_both(config, steps)
    total = Schedule(config, len(open_clips(config.data, config.data.train_split))).total_steps
    ours, theirs, waiting = np.median(seconds, axis=1) * total / 60
    first, last = (" and ".join(f"{nce:.3f}" for nce in losses[0, number]) for number in (0, -1))
    return [
        Outcome(
            f"{config.name}: minutes to the end",
            ours,
            MINUTES,
            False,
            "min",
            f"{total} steps of {np.median(seconds[0]) * 1e3:.0f} ms",
        ),
        Outcome(f"{config.name}: of it, waiting for data", 100 * waiting / ours, WAITING, False, "%"),
        Outcome(f"{config.name}: times faster", theirs / ours, detail=f"the stand-in needs {theirs:.1f} min"),
        Outcome(
            f"{config.name}: InfoNCE differs by",
            float(np.abs(losses[0, :COMPARED] / losses[1, :COMPARED] - 1).max()),
            DIFFERENCE,
            False,
            "",
            f"at most, in {min(steps, COMPARED)} steps of the same draws; in {steps} steps from {first} to {last}",
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = experiment_parser("python -m benchmarks.result", __doc__ or "")
    parser.add_argument("--steps", type=int, default=60, help="How many steps to train both for.")
    config, parsed = parse_experiment(parser, None, default=CONFIGS / "vgim_thesis.yaml")
    show(f"{config.name}, {torch.get_num_threads()} threads", outcomes(config, parsed.steps))


if __name__ == "__main__":
    main()
