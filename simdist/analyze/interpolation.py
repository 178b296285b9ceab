"""The straight line between two clips' latents, made audible: is what lies between two sounds a sound?"""

from __future__ import annotations

import numpy as np
import torch

from simdist.analyze.decoded import DecodedAnalysis, draw_audio, write_audio
from simdist.analyze.outcome import Findings, Outcome
from simdist.analyze.settings import InterpolationSettings
from simdist.analyze.subject import Subject, encode
from simdist.core.errors import InputError
from simdist.probe.settings import names_in


def between(first: torch.Tensor, second: torch.Tensor, steps: int) -> torch.Tensor:
    """(L, C) each -> (steps, L, C) from the first to the second, evenly."""
    share = torch.linspace(0, 1, steps)[:, None, None]
    return (1 - share) * first + share * second


class Interpolation(DecodedAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, subject: Subject, module: int, settings: InterpolationSettings) -> None:
        keys = names_in(settings.keys)
        if keys and len(keys) != 2:
            raise InputError(f"--keys is {settings.keys!r}; it must be the keys of two different clips: KEY_A,KEY_B")
        super().__init__(subject, module, settings, keys or None)
        self._settings = settings
        if len(self.clips) < 2:
            raise InputError(f"{len(self.clips)} clips are too few to interpolate between; raise --clips to 2")

    def work(self, outcome: Outcome) -> Findings:
        """See `Analysis`."""
        steps, keys = self._settings.steps, self.clips.keys[:2]
        mu = encode(self.subject, self.module, self.clips).mu
        waves = list(self.decode(between(mu[0], mu[1], steps)))
        shares = np.linspace(0, 1, steps)
        names = [f"{100 * (1 - share):.0f} % {keys[0]}, {100 * share:.0f} % {keys[1]}" for share in shares]
        originals = self.clips.audio(slice(0, 2), torch.device("cpu"))[:, 0].numpy()
        waves = [originals[0], *waves, originals[1]]
        names = [f"original {keys[0]}", *names, f"original {keys[1]}"]
        outcome.figure("interpolation", draw_audio(waves, names, f"interpolation: {self.where}"))
        write_audio(outcome, "interpolation", waves, names)
        rms = [float(np.sqrt((wave.astype(np.float64) ** 2).mean())) for wave in waves]
        line = f"from {keys[0]} to {keys[1]} in {steps} steps; RMS {', '.join(f'{value:.3f}' for value in rms[1:-1])}"
        return Findings({"keys": keys, "shares": shares.tolist(), "rms": rms}, [line])
