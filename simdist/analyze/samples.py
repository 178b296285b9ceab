"""Draws of the prior made audible: what the decoder makes of latents that no audio stands behind.

Only a variational module's latent was held to N(0, I). Each frame is drawn by itself, as the prior has it: it says
nothing about how frames follow each other, so neither do the sounds.
"""

from __future__ import annotations

import numpy as np
import torch

from simdist.analyze.decoded import DecodedAnalysis, draw_audio, write_audio
from simdist.analyze.distributions import why_not
from simdist.analyze.outcome import Findings, ModuleError, Outcome
from simdist.analyze.settings import SamplesSettings
from simdist.analyze.subject import Subject, encode
from simdist.core.random_streams import stream_seed


class Samples(DecodedAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, subject: Subject, module: int, settings: SamplesSettings) -> None:
        if subject.module(module).log_var is None:
            raise ModuleError(
                f"module {module} of {subject.run.folder} has no prior to draw from ({why_not(subject, module)}); "
                "only variational modules have: train with --model.head variational, as SIM does"
            )
        super().__init__(subject, module, settings)
        self._settings = settings

    def work(self, outcome: Outcome) -> Findings:
        """See `Analysis`."""
        count = self._settings.samples
        generator = torch.Generator().manual_seed(stream_seed(self._settings.seed, "prior"))
        drawn = torch.randn(count, self.frames, self.decoder.in_channels, generator=generator)
        waves = list(self.decode(drawn))
        names = [f"draw {number} of N(0, I)" for number in range(count)]
        outcome.figure("samples", draw_audio(waves, names, f"draws of the prior, decoded: {self.where}"))
        write_audio(outcome, "samples", waves, names)
        real = self.decode(encode(self.subject, self.module, self.clips).mu)
        ours, theirs = (float(np.sqrt((np.asarray(w, dtype=np.float64) ** 2).mean())) for w in (waves, real))
        line = f"RMS {ours:.3f}, of {len(real)} decoded clips {theirs:.3f}"
        return Findings({"samples": count, "rms": ours, "rms_of_decoded_clips": theirs}, [line])
