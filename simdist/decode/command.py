"""Open encoder and decoder, train, measure on the test split, print the results."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from simdist.config.decoder import DECODERS, DecodingConfig, decoder_command
from simdist.config.load import read_tree
from simdist.config.schema import place_name
from simdist.core.errors import EXIT_OK
from simdist.core.files import replacing
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.decode.frozen import open_encoder
from simdist.decode.measuring import measure
from simdist.decode.plots import plot_examples
from simdist.decode.results import as_table, read_result, results_of, write_result
from simdist.decode.task import DecoderTask
from simdist.models.decoder import mirrored
from simdist.runs.folder import CONFIG, Run, open_run
from simdist.training.distributed import resolve_precision
from simdist.training.lifecycle import build_process, lifecycle
from simdist.training.trainer import Trainer

LOG_COLUMNS = 160  # width of a table in a log file
PLOT = "examples.png"


class DecodeCommand:
    """One call of `simdist.decode`. Building it checks everything that can be checked before any work.

    Args:
        encoder_run: run of the encoder.
        config: the decoder's settings.
        stop: checked between steps.
        force: continue even if the settings have changed.

    Raises:
        InputError: a request that cannot be fulfilled.
    """

    def __init__(self, encoder_run: Run, config: DecodingConfig, stop: SignalHandler, force: bool) -> None:
        self._encoder_run, self._force = encoder_run, force
        mirrored(encoder_run.config.model, config.module, config.layer)
        folder, saved = encoder_run.folder / DECODERS / config.folder_name, None
        if (folder / CONFIG).is_file():
            begun = read_tree(DecodingConfig, folder / CONFIG)
            saved = begun.train.precision
            step = begun.checkpoint if config.checkpoint is None else config.checkpoint
            config = replace(config, checkpoint=step, encoder_weights=begun.encoder_weights)
        wanted = config.train.precision
        precision = resolve_precision(wanted, saved)
        config = replace(config, train=replace(config.train, precision=precision))
        frozen, config = open_encoder(encoder_run.folder, encoder_run.config, config)
        self._calibration = frozen.calibration
        opened = open_run(folder, config, force, elsewhere=f"remove {folder} to start from scratch")
        self.run = replace(opened, title=f"{encoder_run.name}-decoder-{config.folder_name}")
        self._process = build_process(self.run, stop, wanted)
        self._task = DecoderTask(self.run, frozen, encoder_run.config, self._process)
        self._trainer = Trainer(self.run, self._task, self._process)
        self._is_main = self._process.accelerator.is_main_process
        self._console = Console(soft_wrap=True, highlight=False, quiet=not self._is_main)
        if not self._console.is_terminal:
            self._console.width = LOG_COLUMNS

    def work(self) -> int:
        """Train and measure unless finished, then print the results; returns the exit code."""
        if self.run.is_finished and not self._force:
            self._console.print(f"{self.run.folder} is finished after {self._trainer.schedule.total_steps} steps")
            code = EXIT_OK
        else:
            with lifecycle(self._trainer, self._process) as ending:
                self._trainer.fit()
                self._measure()
            code = ending.exit_code
        if code == EXIT_OK and self._is_main:
            self._show()
        return code

    def _measure(self) -> None:
        """Measure quality and draw the examples."""
        task, began = self._task, time.monotonic()
        with progress(self._console, "measuring", len(task.test_crops), "clips") as advance:
            measured = measure(task.decode, task.train_crops, task.test_crops, self._process, advance)
        if self._is_main:
            write_result(self.run.folder, self._result(time.monotonic() - began, len(measured.keys)), measured)
            examples = task.examples()
            if examples:
                config = self.run.config
                where = place_name(config.module, config.layer)
                title = f"{config.folder_name}: {where}, loss {config.loss}, step {self._trainer.step:,}"
                with replacing(self.run.folder / PLOT) as temporary:
                    plot_examples(examples, title, temporary)

    def _result(self, seconds: float, measured: int) -> dict[str, Any]:
        config, task = self.run.config, self._task
        train, test = (crops.clips.split.manifest for crops in (task.train_crops, task.test_crops))
        return {
            "module": config.module,
            **({} if config.layer is None else {"layer": config.layer}),
            "loss": config.loss,
            "latents": config.latents,
            "encoder": {
                "untrained": config.untrained,
                "step": config.checkpoint,
                "weights": config.encoder_weights,
                **({"calibration": self._calibration.as_dict()} if self._calibration else {}),
            },
            "decoder": {
                "width": config.width or self._encoder_run.config.model.width,
                "parameters": sum(p.numel() for p in task.model.parameters()),
                "steps": self._trainer.step,
            },
            "data": {
                "crop": config.data.crop,
                "train": {"split": train.split, "fingerprint": train.fingerprint, "clips": len(task.train_crops)},
                "test": {"split": test.split, "fingerprint": test.fingerprint, "clips": measured},
            },
            "seconds": seconds,
        }

    def _show(self) -> None:
        config, folder = self.run.config, self._encoder_run.folder
        self._console.print(as_table(results_of(folder, config.module, config.layer)))
        for line in verdict(read_result(self.run.folder), folder, config):
            self._console.print(line, markup=False)
        self._console.print(f"decoder: {self.run.folder}; audio in {self.run.folder}/audio, plot in {PLOT}")
        which = "" if config.loss == "mse" else f', "{config.loss}"'
        which += "" if config.layer is None else f", layer={config.layer}"
        self._console.print(f'next, in Python: simdist.load_decoder("{folder}", {config.module}{which}).decode(latent)')


def verdict(result: dict[str, Any] | None, run: Path, config: DecodingConfig) -> list[str]:
    """In words: which figures are better or worse than each baseline's, and which do not differ clearly."""
    lines = []
    for name, comparison in (result["against"] if result else {}).items():
        called = "the untrained encoder" if name == "untrained" else "the mean signal"
        if comparison is None:
            if not config.untrained:
                command = decoder_command(run, config.module, config.loss, untrained=True, layer=config.layer)
                lines.append(f"against {called}: not trained yet; {command}")
            continue
        by = {
            word: ", ".join(figure for figure, each in comparison.items() if each["better"] is better)
            for word, better in {"better": True, "worse": False, "no clear difference": None}.items()
        }
        lines.append(f"against {called}: " + "; ".join(f"{word}: {names}" for word, names in by.items() if names))
    return lines
