"""Detection of unused GPUs and of CPUs that emulate bf16, for warnings, the doctor, and the benchmarks.

Both cost a factor of ten or more without changing a result. torch is only imported where it is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DEV = Path("/dev")
GPUS_EXPECTED = "SIMDIST_GPUS_EXPECTED"  # GPUs per node of the cluster profile; set by the batch script
BF16_FLAGS = {"flags": ("avx512_bf16", "amx_bf16"), "Features": ("bf16",)}  # x86, ARM
HIDING = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that show no GPU
SLOW_BF16 = "this CPU has neither AVX-512-BF16 nor AMX and emulates bf16, ten times slower than float32"


def emulates_bf16(cpuinfo: Path | None = None) -> bool | None:
    """Whether this CPU multiplies bf16 in software. None if its flags are unknown, as on macOS."""
    try:
        lines = (cpuinfo or CPUINFO).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, flags = line.partition(":")
        wanted = BF16_FLAGS.get(name.strip())
        if wanted:
            return not any(flag in flags.split() for flag in wanted)
    return None


def uses_cpu(environ: Mapping[str, str]) -> bool:
    """Whether Accelerate was told to use the CPU."""
    return environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def gpus_expected(environ: Mapping[str, str]) -> int:
    """GPUs per node of the cluster profile; 0 without a profile."""
    value = environ.get(GPUS_EXPECTED, "")
    return int(value) if value.isdecimal() else 0


@dataclass(frozen=True)
class TorchBuild:
    """The build of the installed torch."""

    version: str
    gpus: str | None
    """`CUDA 12.6`, `ROCm 6.2`; None for a CPU build."""


def torch_build() -> TorchBuild:
    """The torch of this environment."""
    import torch

    hip = getattr(torch.version, "hip", None)
    cuda = torch.version.cuda
    return TorchBuild(torch.__version__, f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else None)


def gpus_of_node(environ: Mapping[str, str], dev: Path) -> str | None:
    """Evidence that this node or job has GPUs, or None."""
    devices = sorted(path.name for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if devices:
        return f"/dev/{devices[0]}"
    return _gpus_of_job(environ) or ("nvidia-smi lists one" if _nvidia_smi_lists_a_gpu() else None)


def _gpus_of_job(environ: Mapping[str, str]) -> str | None:
    """The environment variable that lists this job's GPUs, or None."""
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"):
        if environ.get(name, "") not in (*HIDING, "0" if name == "SLURM_GPUS_ON_NODE" else ""):
            return f"{name}={environ[name]}"
    return None


def _nvidia_smi_lists_a_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and done.stdout.startswith("GPU ")


def no_gpu(
    environ: Mapping[str, str],
    device: str,
    build: TorchBuild | None = None,
    dev: Path | None = None,
    chosen: bool = False,
) -> str | None:
    """Why a command runs on the CPU although there are GPUs, or None.

    Args:
        environ: `os.environ`.
        device: type of the device that the command runs on.
        build: of torch; None detects it.
        dev: folder of device files; None is /dev.
        chosen: whether an option of the command selects the CPU.
    """
    if device != "cpu":
        return None
    dev, expected = dev or DEV, gpus_expected(environ)
    if not expected and (chosen or uses_cpu(environ)):
        return None  # the user's choice
    seen = gpus_of_node(environ, dev)
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "0") in HIDING
    by_slurm = environ.get("CUDA_VISIBLE_DEVICES") == "NoDevFiles"
    if not expected and (seen is None or (hidden and not by_slurm)):
        return None
    why = f"the profile asked for {expected} GPU(s) per node" if expected else f"this node has GPUs ({seen})"
    reason = _reason(environ, build or torch_build(), dev, chosen, hidden)
    return f"running on the CPU although {why}: {reason}"


def warn_of_cpu(device: str, log: Callable[[str], None], event: Callable[..., None], chosen: bool = False) -> None:
    """Log a warning and write an event if a command runs on the CPU although there are GPUs."""
    text = no_gpu(os.environ, device, chosen=chosen)
    if text is not None:
        log(f"warning: {text}")
        event("no_gpu", text=text)


def _reason(environ: Mapping[str, str], build: TorchBuild, dev: Path, chosen: bool, hidden: bool) -> str:
    """The likely reason why no GPU is used, and the fix."""
    if chosen:
        return "--device is cpu. Leave it out"
    if uses_cpu(environ):
        return f"ACCELERATE_USE_CPU={environ['ACCELERATE_USE_CPU']} is set. Unset it, or take gpus_per_node: 0"
    if not gpus_expected(environ) and "SLURM_JOB_ID" in environ and _gpus_of_job(environ) is None:
        return "this job asked for no GPU. Submit it with --gpus-per-node, or set ACCELERATE_USE_CPU=true"
    if build.gpus is None:
        return (
            f"torch {build.version} is a CPU build. Install a CUDA build (https://pytorch.org/get-started/locally), or "
            "set ACCELERATE_USE_CPU=true if the CPU is meant"
        )
    if hidden:
        return f"CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']!r} hides them. Unset it"
    if build.gpus.startswith("CUDA") and not any(dev.glob("nvidia[0-9]*")):
        return (
            f"torch {build.version} is built for {build.gpus}, and there is no /dev/nvidia0. Ask for GPUs "
            "(--gpus-per-node), and start a container with GPU support (apptainer exec --nv)"
        )
    return (
        f"torch {build.version} is built for {build.gpus}, and finds none: the driver is probably too old. Compare "
        f"`nvidia-smi`, and install a newer driver or a torch for its version"
    )
