"""Train an encoder on your own folder of audio, and use it.

    python examples/train_on_your_audio.py RECORDINGS

RECORDINGS contains one folder per speaker with WAV or FLAC files of any sample rate: RECORDINGS/anna/001.wav. Further
arguments are passed to `simdist.train`, for example `--train.epochs 20`. Repeat the command to resume after a stop.
"""

import sys
from pathlib import Path

import torch  # noqa: TID251
from rich.console import Console

import simdist
from simdist.config.load import CONFIGS
from simdist.core.signals import SignalHandler
from simdist.pack.corpora import Corpus, SplitPlan, Utterance, file_status, held_out
from simdist.pack.packing import Options, pack
from simdist.train.__main__ import main as train

SHARDS, RUN = Path("data/recordings"), Path("runs/recordings")


def list_files(source: Path) -> Corpus:
    """Say which file belongs to which split; a tenth of each speaker's files is held out for validation."""
    utterances = [
        Utterance(
            key=f"{path.parent.name}-{path.stem}",  # unique, without a dot
            path=str(path),
            size=file_status(path).size,
            mtime_ns=file_status(path).mtime_ns,
            speaker=path.parent.name,  # a label that probes can predict
            resample=True,  # convert to 16 kHz
        )
        for path in sorted([*source.glob("*/*.wav"), *source.glob("*/*.flac")])
    ]
    test = held_out([(u.key, u.speaker) for u in utterances], 0.1)
    splits = [
        SplitPlan("train", [u for u in utterances if u.key not in test]),
        SplitPlan("test", [u for u in utterances if u.key in test]),
    ]
    return Corpus("recordings", splits, parameters={"held_out": 0.1})


if __name__ == "__main__":
    # 1. Pack the files into shards. Finished shards are kept, so this is quick the second time.
    signals = SignalHandler()
    with signals.installed():
        pack(list_files(Path(sys.argv[1])), SHARDS, Options(workers=2), Console(), signals)

    # 2. Train. The second file makes the preset small; leave it out to train the model of the paper.
    presets = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "demo.yaml")]
    if code := train([*presets, "--data.root", str(SHARDS), "--run-dir", str(RUN), *sys.argv[2:]]):
        sys.exit(code)  # 75: preempted and saved, run the same command again

    # 3. Use the encoder: (batch, 1, samples at 16 kHz) -> (batch, frames, channels).
    context = simdist.load_encoder(RUN).encode(torch.zeros(1, 1, 16_000))
    print(f"one second of audio becomes a context of shape {tuple(context.shape)}")
