"""This machine: what is installed, what it trains on, its disk, and the way to wandb."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from simdist.doctor.findings import Finding, error, ok, warning
from simdist.runs.folder import PACKAGES
from simdist.training.hardware import SLOW_BF16, emulates_bf16, no_gpu

NEEDED = tuple(name for name in PACKAGES if name not in ("deepspeed", "wandb"))
MODEL_BYTES = 200_000_000  # a checkpoint of the SIM for LibriSpeech: 16.6 M weights and Adam's two moments
RUN_BYTES = 4 * MODEL_BYTES  # two that are kept, one being written, and the rest of a run
WANDB = ("api.wandb.ai", 443)


def versions() -> dict[str, str | None]:
    """Python and the packages that decide what a run computes; None for one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_packages() -> Iterator[Finding]:
    """Whether what training imports is there."""
    found = versions()
    missing = [name for name in NEEDED if found[name] is None]
    if missing:
        yield error("packages", f"{', '.join(missing)} not installed", "run `pip install -e .` in the clone of simdist")
        return
    named = ", ".join(f"{name} {found[name]}" for name in ("python", "simdist", "torch", "accelerate"))
    yield ok("packages", named)


def num_gpus() -> int:
    """GPUs that torch can use here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_accelerator() -> Iterator[Finding]:
    """What a run on this machine would train on."""
    import torch

    gpus = num_gpus()
    unused = no_gpu(os.environ, "cuda" if gpus else "cpu")
    if gpus:
        yield ok("accelerator", f"{gpus} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    elif unused is not None:
        message, _, remedy = unused.partition(". ")
        yield warning("accelerator", message, remedy)
    elif torch.version.cuda is None:
        yield ok("accelerator", f"{os.cpu_count()} CPU cores; this torch is built without CUDA")
    else:
        remedy = "this is normal on a login node; elsewhere, check `nvidia-smi`"
        yield warning("accelerator", f"torch is built for CUDA {torch.version.cuda}, but there is no GPU here", remedy)


def check_bf16() -> Iterator[Finding]:
    """Whether bf16 pays where a run would train on the CPU."""
    emulated = emulates_bf16()
    if num_gpus() or emulated is None:  # nothing is known of macOS's CPUs
        return
    if emulated:
        yield warning("bf16", SLOW_BF16, "leave --train.precision at auto, which takes float32 here, or set no")
    else:
        yield ok("bf16", "this CPU multiplies in bf16")


def check_disk(runs: Path) -> tuple[list[Finding], float]:
    """Room for runs, and the seconds that a checkpoint takes."""
    folder = _existing(runs)
    if not os.access(folder, os.W_OK):
        return [error("disk", f"{folder} cannot be written", "name another folder with --runs")], 0.0
    free, size = shutil.disk_usage(folder).free, _checkpoint_bytes(runs)
    if free < size + RUN_BYTES:
        text = f"{free / 1e9:.1f} GB free at {folder}; a run may need {(size + RUN_BYTES) / 1e9:.1f} GB"
        return [error("disk", text, "make room, or name another folder with --runs")], 0.0
    seconds = _time_to_save(folder, size)
    text = f"{free / 1e9:.0f} GB free at {folder}; a checkpoint of {size / 1e6:.1f} MB is saved in {seconds:.1f} s"
    if seconds > 30:
        remedy = "runs belong on a fast shared file system; a preempted job must save within its grace time"
        return [warning("disk", text, remedy)], seconds
    return [ok("disk", text)], seconds


def check_wandb() -> Iterator[Finding]:
    """Whether runs may be mirrored to Weights & Biases from here."""
    offline = "use `--wandb.mode offline`, and run `wandb sync runs/*/wandb/offline-run-*` on a machine with internet"
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        yield ok("wandb", f"WANDB_MODE is {os.environ['WANDB_MODE']}")
    elif not reaches_wandb():
        yield warning("wandb", f"{WANDB[0]} cannot be reached", offline)
    elif not os.environ.get("WANDB_API_KEY") and WANDB[0] not in _netrc():
        yield warning("wandb", f"{WANDB[0]} answers, but you are not logged in", f"run `wandb login`; or {offline}")
    else:
        yield ok("wandb", f"{WANDB[0]} answers, and you are logged in")


def reaches_wandb() -> bool:
    """Whether wandb's server answers; a proxy counts as internet."""
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return True
    try:
        with socket.create_connection(WANDB, timeout=3):
            return True
    except OSError:
        return False


def _netrc() -> str:
    try:
        return (Path.home() / ".netrc").read_text()
    except OSError:
        return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return folder if folder.is_dir() else _existing(folder.parent)


def _checkpoint_bytes(runs: Path) -> int:
    """Size of the largest checkpoint below `runs`, and no less than that of the model for LibriSpeech."""
    found = runs.glob("**/checkpoints/step_*") if runs.is_dir() else []
    return max(MODEL_BYTES, *(sum(file.stat().st_size for file in folder.iterdir()) for folder in found), 0)


def _time_to_save(folder: Path, size: int) -> float:
    """Seconds until so many bytes are written and synced; they are removed again."""
    probe, block = folder / f".doctor-{os.getpid()}", os.urandom(1 << 20)
    begin = time.perf_counter()
    try:
        with probe.open("wb") as file:
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return time.perf_counter() - begin
