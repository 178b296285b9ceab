"""GPUs that are there and not used, and bf16 on CPUs that emulate it: one line each, at the terminal and in the run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from launch.overview import read_progress
from launch.plan import Length
from simdist.config.load import read_config
from simdist.config.schema import Config
from simdist.core.errors import EXIT_INTERRUPTED, InputError
from simdist.core.files import read_json_lines
from simdist.core.signals import SignalHandler
from simdist.doctor import machine
from simdist.runs.folder import CONFIG, EVENTS, Run
from simdist.train import __main__ as train_command
from simdist.training import hardware
from simdist.training import lifecycle as running
from simdist.training.distributed import resolve_precision, slow_precision
from simdist.training.hardware import GPUS_EXPECTED, TorchBuild, emulates_bf16, no_gpu

CPU_BUILD, CUDA_BUILD = TorchBuild("2.13.0+cpu", None), TorchBuild("2.13.0+cu126", "CUDA 12.6")
CPUINFO = {
    "zen3": ("processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma\n", True),
    "zen4": ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n", False),
    "amx": ("processor\t: 0\nflags\t\t: fpu avx2 amx_tile amx_bf16\n", False),
    "graviton3": ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n", False),
    "graviton2": ("processor\t: 0\nFeatures\t: fp asimd\n", True),
    "other": ("processor\t: 0\n", None),
}


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that this machine has one of the CPUs, and no launcher's precision."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def set_cpu(name: str) -> None:
        (tmp_path / "cpuinfo").write_text(CPUINFO[name][0])
        monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")

    return set_cpu


@pytest.fixture
def no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev without GPUs, no nvidia-smi, and none of the variables; returns the folder."""
    dev = tmp_path / "dev"
    dev.mkdir()
    monkeypatch.setattr(hardware, "DEV", dev)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", GPUS_EXPECTED):
        monkeypatch.delenv(name, raising=False)
    return dev


# --- bf16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CPUINFO)
def test_flags_tell_whether_bf16_is_emulated(name: str, tmp_path: Path) -> None:
    text, expected = CPUINFO[name]
    (tmp_path / "cpuinfo").write_text(text)
    assert emulates_bf16(tmp_path / "cpuinfo") is expected
    assert emulates_bf16(tmp_path / "none, as on macOS") is None


@pytest.mark.parametrize(
    ("name", "wanted", "saved", "precision", "warned"),
    [
        ("zen3", "auto", None, "no", "so this trains in float32"),
        ("zen3", "bf16", None, "bf16", "Use --train.precision no"),
        ("zen3", "auto", "bf16", "bf16", "Use --train.precision no"),  # begun on another CPU
        ("zen4", "auto", None, "bf16", None),
        ("zen4", "auto", "no", "no", None),  # begun on another CPU
        ("zen4", "bf16", None, "bf16", None),
        ("other", "auto", None, "bf16", None),
    ],
)
def test_only_auto_falls_back_to_float32(
    name: str,
    wanted: str,
    saved: str | None,
    precision: str,
    warned: str | None,
    cpu: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu(name)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_precision(wanted, saved) == precision
    text = slow_precision(precision)
    assert (text is None) if warned is None else (text is not None and warned in text and "\n" not in text)


def test_without_bf16_there_is_nothing_to_say(cpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu("zen3")
    assert (resolve_precision("auto"), slow_precision("no")) == ("no", None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_precision("auto"), slow_precision("bf16")) == ("bf16", None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_precision("auto") == "no"


def test_the_doctor_reports_it(cpu: Callable[[str], None]) -> None:
    cpu("zen3")
    (found,) = machine.check_bf16()
    assert (found.level, found.message) == ("warning", hardware.SLOW_BF16)
    assert "--train.precision" in found.remedy
    cpu("zen4")
    assert [found.level for found in machine.check_bf16()] == ["ok"]
    cpu("other")
    assert list(machine.check_bf16()) == []


def test_float32_that_was_asked_for_is_not_called_a_replacement(
    cpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    cpu("zen3")
    assert slow_precision("no", wanted="auto") is not None
    assert slow_precision("no", wanted="no") is None
    assert slow_precision("bf16", wanted="bf16") is not None


def test_a_run_says_it_and_goes_on_as_it_was_begun_on_another_cpu(
    cpu: Callable[[str], None],
    no_devices: Path,
    speech: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    argv = ["--config=configs/sim_librispeech.yaml", "--config=configs/debug.yaml", f"--data.root={speech}"]
    argv += [f"--run-dir={tmp_path / 'run'}", "--data.num_workers=0", "--train.validate_every=0"]
    cpu("zen3")
    assert train_command.main([*argv, "--train.max_steps=2"]) == 0
    assert "so this trains in float32" in capsys.readouterr().out
    cpu("zen4")
    assert train_command.main([*argv, "--train.max_steps=4", "--force"]) == 0
    printed = capsys.readouterr().out
    assert "resuming at step 2" in printed
    assert "warning: " not in printed
    with pytest.raises(InputError, match=r"train.precision: 'no' -> 'bf16'"):
        train_command.main([*argv, "--train.max_steps=4", "--train.precision=bf16"])


class StopAfterAStep(SignalHandler):
    """Ctrl-C during the first step: the loop asks before that step and after it."""

    asked = 0

    @property
    def signal_number(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.asked += 1
        return signal.SIGINT if self.asked > 1 else 0

    @signal_number.setter
    def signal_number(self, value: int) -> None:
        assert value == 0


@pytest.fixture
def step_on(
    cpu: Callable[[str], None],
    no_devices: Path,
    fresh_process: None,
    tiny: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, list[int]]]:
    """Train one step on a CPU, without a run folder; returns the steps at which the run of each precision resumed."""
    monkeypatch.chdir(tmp_path)

    def train(name: str, launched: str = "bf16", precision: str = "auto") -> dict[str, list[int]]:
        cpu(name)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        AcceleratorState._reset_state(reset_partial_state=True)
        loop = replace(tiny.train, precision=precision, validate_every=0)
        assert train_command.train(replace(tiny, train=loop), stop=StopAfterAStep()) == EXIT_INTERRUPTED
        events = {path.parent: read_json_lines(path) for path in Path("runs").glob(f"*/{EVENTS}")}
        return {
            read_config(folder / CONFIG).train.precision: [
                line["step"] for line in lines if line["event"] in ("start", "resumed")
            ]
            for folder, lines in events.items()
        }

    return train


def test_without_a_folder_the_same_command_resumes_on_another_cpu(step_on: Callable[..., dict[str, list[int]]]) -> None:
    assert step_on("zen4") == {"bf16": [0]}
    assert step_on("zen3") == {"bf16": [0, 1]}
    assert step_on("zen4") == {"bf16": [0, 1, 2]}


def test_so_does_a_run_that_trains_in_float32_because_bf16_is_emulated(
    step_on: Callable[..., dict[str, list[int]]],
) -> None:
    assert step_on("zen3") == {"no": [0]}
    assert step_on("zen4") == {"no": [0, 1]}
    assert step_on("zen3") == {"no": [0, 1, 2]}


def test_another_command_does_not_resume_it(step_on: Callable[..., dict[str, list[int]]]) -> None:
    assert step_on("zen4", launched="no") == {"no": [0]}
    assert step_on("zen4") == {"no": [0], "bf16": [0]}  # float32 was asked for, not fallen back to
    assert step_on("zen3", precision="no") == {"no": [0, 1], "bf16": [0]}
    assert step_on("zen3") == {"no": [0, 1, 2], "bf16": [0]}  # both are there: what this CPU does best
    assert step_on("zen4") == {"no": [0, 1, 2], "bf16": [0, 1]}


def test_ranks_on_different_cpus_must_agree(
    tiny: Config, tmp_path: Path, fresh_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.CpuGroup, "gather", lambda self, value: ["no", "bf16"])
    with pytest.raises(InputError, match=r"became bf16 and no on different nodes.* Set --train.precision no or bf16"):
        running.build_process(Run(tmp_path, tiny), SignalHandler())


def test_benchmarks_skip_bf16_and_say_why(
    cpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import outcomes, step

    monkeypatch.setattr(step, "step_of", lambda name, config: lambda: None)
    monkeypatch.setattr(
        step, "info_nce_of", lambda config: dict.fromkeys(["stand-in", "batched", "ours"], lambda: None)
    )
    monkeypatch.setattr(step, "peak_bytes", lambda name, config: 2**20)
    cpu("zen3")
    rows = step.outcomes(Config(), 1)
    assert [row.what for row in rows if "bf16" in row.what] == ["step, bf16"]
    outcomes.show("", rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert "skipped" in printed
    assert "AVX-512-BF16" in printed
    cpu("zen4")
    assert len([row for row in step.outcomes(Config(), 1) if "bf16" in row.what]) == 2


# --- no GPU -----------------------------------------------------------------------------------------------------------

WARNED = {
    "CPU build": (
        {"SLURM_GPUS_ON_NODE": "2"},
        CPU_BUILD,
        0,
        ["(SLURM_GPUS_ON_NODE=2)", "a CPU build. Install a CUDA"],
    ),
    "CPU build, device file": ({}, CPU_BUILD, 1, ["this node has GPUs (/dev/nvidia0)", "is a CPU build"]),
    "old driver": ({"CUDA_VISIBLE_DEVICES": "0"}, CUDA_BUILD, 1, ["built for CUDA 12.6", "driver is probably too old"]),
    "no device": ({"SLURM_JOB_GPUS": "0"}, CUDA_BUILD, 0, ["there is no /dev/nvidia0", "--gpus-per-node", "--nv"]),
    "a job without GPUs": (
        {"SLURM_JOB_ID": "7"},
        CUDA_BUILD,
        1,
        ["(/dev/nvidia0): this job asked for no GPU. Submit it with --gpus-per-node"],
    ),
    "a job without GPUs, which SLURM hides": (
        {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"},
        CUDA_BUILD,
        1,
        ["this job asked for no GPU"],
    ),
    "a job with GPUs": ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, CUDA_BUILD, 1, ["driver is probably too old"]),
    "profile": ({GPUS_EXPECTED: "4"}, CPU_BUILD, 0, ["the profile asked for 4 GPU(s) per node", "is a CPU build"]),
    "profile, CPU chosen": (
        {GPUS_EXPECTED: "4", "ACCELERATE_USE_CPU": "true"},
        CUDA_BUILD,
        1,
        ["asked for 4", "ACCELERATE_USE_CPU=true is set. Unset it"],
    ),
    "profile, hidden": (
        {GPUS_EXPECTED: "1", "CUDA_VISIBLE_DEVICES": ""},
        CUDA_BUILD,
        1,
        ["asked for 1", "CUDA_VISIBLE_DEVICES='' hides them. Unset it"],
    ),
}
SILENT = {
    "no GPU anywhere": ({}, 0),
    "the user's choice": ({"ACCELERATE_USE_CPU": "true", "SLURM_GPUS_ON_NODE": "2"}, 1),
    "hidden by the user": ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
    "a CPU node of SLURM": ({"SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
    "a profile without GPUs": ({GPUS_EXPECTED: "0"}, 0),
}


@pytest.mark.parametrize("name", WARNED)
def test_gpus_that_are_not_used_are_one_line_with_reason_and_remedy(name: str, no_devices: Path) -> None:
    environ, build, devices, words = WARNED[name]
    for number in range(devices):
        (no_devices / f"nvidia{number}").touch()
    text = no_gpu(environ, "cpu", build, no_devices)
    assert text is not None
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text
    assert no_gpu(environ, "cuda", build, no_devices) is None


@pytest.mark.parametrize("name", SILENT)
def test_a_cpu_that_is_meant_is_silent(name: str, no_devices: Path) -> None:
    environ, devices = SILENT[name]
    for number in range(devices):
        (no_devices / f"nvidia{number}").touch()
    assert no_gpu(environ, "cpu", CPU_BUILD, no_devices) is None


def test_nvidia_smi_is_asked_last(no_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setattr(hardware.shutil, "which", lambda name: str(program))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for answer, seen in (("echo 'GPU 0: NVIDIA H100'", True), ("exit 9", False), ("sleep 0", False)):
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        assert (no_gpu({}, "cpu", CPU_BUILD, no_devices) is not None) is seen


def test_a_choice_on_the_command_line_counts_unless_the_profile_asked_for_gpus(no_devices: Path) -> None:
    (no_devices / "nvidia0").touch()
    assert no_gpu({}, "cpu", CUDA_BUILD, no_devices, chosen=True) is None
    text = no_gpu({GPUS_EXPECTED: "1"}, "cpu", CUDA_BUILD, no_devices, chosen=True)
    assert text is not None
    assert "--device is cpu. Leave it out" in text


def test_train_probe_decode_and_analyze_say_it_and_write_it_down(
    cpu: Callable[[str], None],
    no_devices: Path,
    speech: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from simdist.analyze import __main__ as analyze_command
    from simdist.decode import __main__ as decode_command
    from simdist.probe import __main__ as probe_command

    cpu("zen4")
    run = tmp_path / "run"
    argv = ["--config=configs/sim_librispeech.yaml", "--config=configs/debug.yaml", f"--data.root={speech}"]
    argv += [f"--run-dir={run}", "--data.num_workers=0", "--train.validate_every=0", "--train.max_steps=2"]
    probe = [f"--run-dir={run}", "--label=speaker", "--module=0", "--epochs=1", "--crops=1", "--bootstrap=2"]
    decode = [f"--run-dir={run}", "--module=2", "--loss=mse", "--train.max_steps=1", "--train.validate_every=0"]
    analyze = ["distributions", f"--run-dir={run}", "--clips=4", "--module=0"]
    length = Length(speech / "train", 1.0, 8, 2, 1)
    monkeypatch.setenv(GPUS_EXPECTED, "2")

    def warnings(file: Path) -> list[str]:
        return [line["text"] for line in read_json_lines(file) if line["event"] == "no_gpu"]

    assert train_command.main(argv) == 0
    begin = "warning: running on the CPU although the profile asked for 2 GPU(s) per node: "
    assert capsys.readouterr().out.splitlines()[0].startswith(begin)
    (written,) = warnings(run / EVENTS)
    assert read_progress(run, length, 0.0).warning == written
    for number, (command, words) in enumerate(
        [
            (probe_command.main, probe),
            (analyze_command.main, analyze),
            (decode_command.main, decode),
        ],
        start=2,
    ):
        assert command(words) == 0
        assert capsys.readouterr().out.count(begin) == 1
        assert len(warnings(run / EVENTS)) == min(number, 3)
    assert warnings(run / "decoders" / "2-mse" / EVENTS) == [written]
    monkeypatch.delenv(GPUS_EXPECTED)
    with (run / EVENTS).open("a") as file:  # restarted where all is well
        file.write(json.dumps({"event": "resumed", "host": "n2", "step": 2}) + "\n")
    assert read_progress(run, length, 0.0).warning == ""
