"""DeepSpeed in real processes against plain training: the same losses, optimizer states and checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config, to_dict
from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.training.checkpoint import load_checkpoint
from simdist.training.deepspeed_settings import check_started, fill, read_plugin
from simdist.training.distributed import build_accelerator
from simdist.training.hardware import emulates_bf16
from tests.support import ROOT
from tests.support.training import lines, train, weights

pytestmark = [
    pytest.mark.usefixtures("fresh_process"),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("deepspeed", "transformers")),
        reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'",
    ),
]
STEPS = 20
CLIP = 0.5  # some modules in some steps, which a test asserts


@pytest.fixture(scope="module")
def base(speech: Path) -> Config:
    """A small SIM in float32 for 20 steps of 4 clips, with a validation."""
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    loop = replace(config.train, max_steps=STEPS, precision="no", log_every=1, validate_every=1.0)
    optim = replace(config.optim, lr=2e-3, weight_decay=0.01, schedule="cosine", warmup_epochs=0.5)
    return replace(config, data=replace(config.data, root=str(speech), crop=8000), train=loop, optim=optim)


def in_bf16(config: Config) -> Config:
    return replace(config, train=replace(config.train, precision="bf16"))


def clipped_and_accumulated(config: Config) -> Config:
    """Without BatchNorm: a bias before it has no gradient, and Adam makes steps of the rounding errors."""
    optim, loop = replace(config.optim, clip_grad_norm=CLIP), replace(config.train, groups_at_once=1)
    data = replace(config.data, group=config.data.batch_size // 2)
    return replace(config, data=data, model=replace(config.model, batch_norm=False), optim=optim, train=loop)


def patient(config: Config) -> Config:
    """Rolls a module back to one of many checkpoints after three steps without finite numbers."""
    loop = replace(config.train, max_nonfinite_steps=3, checkpoint_every=5, keep_last=9)
    return replace(config, train=loop)


def environment() -> dict[str, str]:
    """Of launched processes; DeepSpeed compiles something on import, which without Dynamo takes a second less."""
    ours = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    return os.environ | ours | {"PYTHONPATH": str(ROOT)}


def run_jobs(folder: Path, processes: int, jobs: list[tuple[str | None, Config, str, dict[str, int]]]) -> str:
    """Train the runs in `folder` by `deepspeed_runs.py`; returns what it printed."""
    listed = []
    for number, (settings, config, name, further) in enumerate(jobs):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(to_dict(config)))
        listed.append((settings, str(folder / f"{number}.yaml"), str(folder / name), further))
    (folder / "jobs.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]  # accelerate's own takes longer to start
    command += [str(ROOT / "tests" / "support" / "processes" / "deepspeed_runs.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that one process trained under DeepSpeed; `there_and_back` was begun without it."""
    folder = tmp_path_factory.mktemp("alone")
    train(base, folder / "there_and_back", stop_at=7)
    jobs = [
        ("zero2.json", base, "there_and_back", {"stop_at": 14}),
        ("zero2.json", in_bf16(base), "zero2_bf16", {}),
        ("zero1.json", in_bf16(base), "zero1_bf16", {}),
        ("zero1.json", clipped_and_accumulated(base), "zero1_clipped", {}),
        ("zero2.json", clipped_and_accumulated(base), "zero2_clipped", {}),
        ("zero2.json", base, "zero2", {}),
        ("zero2.json", base, "parts", {"stop_at": 9}),
        ("zero2.json", base, "parts", {}),
    ]
    printed = run_jobs(folder, 1, jobs)
    assert "world size 1 on cpu, DeepSpeed ZeRO 2, precision bf16" in printed
    assert "world size 1 on cpu, DeepSpeed ZeRO 1, precision no" in printed
    return folder


@pytest.fixture(scope="module")
def together(base: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs of two processes that share each group, and what was printed."""
    folder = tmp_path_factory.mktemp("together")
    config = clipped_and_accumulated(base)
    config = replace(config, data=replace(config.data, batch_size=8, group=8))
    jobs = [
        (None, config, "ddp", {}),
        ("zero1.json", config, "zero1", {}),
        ("zero2.json", config, "zero2", {}),
        ("zero2.json", config, "parts", {"stop_at": 9}),
        ("zero2.json", config, "parts", {}),
        ("zero2.json", patient(config), "diverged", {"broken_at": 8}),
    ]
    return folder, run_jobs(folder, 2, jobs)


def moments(folder: Path, step: int = STEPS) -> list[dict[str, Any]]:
    """The optimizer's state of every parameter."""
    modules = load_checkpoint(folder / "checkpoints" / f"step_{step:08d}").optimizer
    return [state for module in modules for state in module["optimizer"]["state"].values()]


def assert_same_lines(ours: Path, theirs: Path, tolerance: float) -> None:
    for mine, other in zip(lines(ours), lines(theirs), strict=True):
        assert (mine["kind"], mine["step"]) == (other["kind"], other["step"])
        for module, expected in zip(mine["modules"], other["modules"], strict=True):
            accuracy = module.pop("accuracy"), expected.pop("accuracy")
            assert accuracy[0] == pytest.approx(accuracy[1], abs=2e-3)  # one of 2,000 predictions may tip
            assert module == pytest.approx(expected, rel=tolerance, abs=tolerance), mine["step"]


def assert_same_moments(ours: Path, theirs: Path, tolerance: float) -> None:
    for mine, other in zip(moments(ours), moments(theirs), strict=True):
        assert mine["step"] == other["step"] == STEPS
        for key in ("exp_avg", "exp_avg_sq"):
            scale = float(other[key].abs().max())
            assert torch.allclose(mine[key], other[key], rtol=tolerance, atol=tolerance * scale)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    mine, other = weights(ours, STEPS), weights(theirs, STEPS)
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("name", "change", "tolerance"),
    [
        ("zero2", lambda config: config, 1e-5),
        ("zero1_bf16", in_bf16, 1e-3),
        ("zero2_bf16", in_bf16, 1e-3),
        ("zero1_clipped", clipped_and_accumulated, 1e-4),
        ("zero2_clipped", clipped_and_accumulated, 1e-4),
    ],
)
def test_one_process_trains_as_without_deepspeed(
    alone: Path, base: Config, tmp_path: Path, name: str, change: Callable[[Config], Config], tolerance: float
) -> None:
    train(change(base), tmp_path / "plain")
    assert_same_lines(alone / name, tmp_path / "plain", tolerance)
    assert_same_moments(alone / name, tmp_path / "plain", tolerance)


def test_clipping_is_each_modules_own(alone: Path) -> None:
    recorded = [line["modules"] for line in lines(alone / "zero1_clipped") if line["kind"] == "train"]
    norms = torch.tensor([[module["grad_norm"] for module in modules] for modules in recorded])
    assert (norms > CLIP).any()
    assert (norms < CLIP).any()
    assert (norms.square().sum(dim=1).sqrt() > CLIP).all()  # so clipping all modules together would have shown


def test_stopped_and_resumed_equals_undisturbed(alone: Path) -> None:
    assert_same_weights(alone / "parts", alone / "zero2")
    assert lines(alone / "parts") == lines(alone / "zero2")


def test_a_run_continues_under_deepspeed_and_back(alone: Path, base: Config, tmp_path: Path) -> None:
    resumed, _ = train(base, alone / "there_and_back")
    assert resumed.step == STEPS
    train(base, tmp_path / "plain")
    assert_same_lines(alone / "there_and_back", tmp_path / "plain", 1e-5)
    assert_same_moments(alone / "there_and_back", tmp_path / "plain", 1e-5)


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_two_processes_train_as_under_ddp(together: tuple[Path, str], name: str) -> None:
    folder, printed = together
    assert f"world size 2 on cpu, DeepSpeed ZeRO {name[-1]}, precision no" in printed
    assert "world size 2 on cpu, MULTI_CPU" in printed
    assert_same_lines(folder / name, folder / "ddp", 1e-4)
    assert_same_moments(folder / name, folder / "ddp", 1e-3)


def test_two_processes_resume_from_gathered_states(together: tuple[Path, str]) -> None:
    folder, _ = together
    assert_same_weights(folder / "parts", folder / "zero2")
    assert lines(folder / "parts") == lines(folder / "zero2")


def test_a_diverged_module_alone_skips_its_steps_and_goes_back(together: tuple[Path, str]) -> None:
    folder, _ = together
    told = {line["event"]: line for line in read_json_lines(folder / "diverged" / "events.jsonl")}
    assert (told["bad_step"]["module"], told["bad_step"]["step"]) == (1, 9)
    assert [told["rolled_back"][key] for key in ("module", "step", "to_step")] == [1, 11, 5]
    mine, undisturbed = weights(folder / "diverged", STEPS), weights(folder / "zero2", STEPS)
    assert all(tensor.isfinite().all() for tensor in mine.values())
    same = {name: torch.equal(mine[name], undisturbed[name]) for name in mine}
    assert all(equal for name, equal in same.items() if name.startswith("greedy.0."))
    assert not any(equal for name, equal in same.items() if name.startswith("greedy.1.") and name.endswith("mu.weight"))
    states = load_checkpoint(folder / "diverged" / "checkpoints" / f"step_{STEPS:08d}").optimizer
    assert [int(state["optimizer"]["state"][0]["step"]) for state in states] == [20, 14, 17, 17]


def test_processes_that_accelerate_does_not_see_are_refused(together: tuple[Path, str]) -> None:
    assert together[1].count("refused: accelerate sees 1 of 2 processes") == 2


def test_the_command_stops_on_a_signal_and_says_so(speech: Path, tmp_path: Path) -> None:
    """A preemption reaches the process itself; its exit code is 75, which accelerate's launcher reports."""
    settings = str(CONFIGS / "deepspeed" / "zero2.json")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--mixed_precision=bf16"]
    command += [f"--deepspeed_config_file={settings}", "--num_machines=1", "--num_processes=1", "--dynamo_backend=no"]
    command += ["--main_process_port=0", "-m", "simdist.train"]
    command += [f"--config={CONFIGS / 'sim_librispeech.yaml'}", f"--config={CONFIGS / 'debug.yaml'}"]
    command += [f"--data.root={speech}", "--data.crop=8000", "--train.max_steps=3000", "--train.log_every=1"]
    running = subprocess.Popen(
        [*command, f"--run-dir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    while len(read_json_lines(tmp_path / "run" / "metrics.jsonl")) < 5:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.1)
    (child,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    printed, _ = running.communicate(timeout=120)
    precision = "no" if emulates_bf16() else "bf16"
    assert printed.index(f"world size 1 on cpu, DeepSpeed ZeRO 2, precision {precision}") < printed.index(
        "train step 1/"
    )
    found = re.search(r"stopped at step (\d+), everything is saved; the same command resumes", printed)
    assert found, printed
    assert re.search(r"exitcode\s*: 75 ", printed), printed
    assert weights(tmp_path / "run", int(found[1]))


class TestRefusals:
    """What is not done, or is decided elsewhere: one line each, before anything is written."""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3; simdist has 1 and 2"),
            ({"zero_optimization": {"stage": 0}}, "ZeRO stage 0; simdist has 1 and 2"),
            ({"optimizer": {"type": "AdamW", "params": {"lr": 1}}}, "sets optimizer to .* --optim.lr"),
            ({"scheduler": {"type": "WarmupLR"}}, "sets scheduler to .* --optim.schedule"),
            ({"gradient_clipping": 1.0}, r"gradient_clipping to 1\.0, .* --optim.clip_grad_norm"),
            ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps to 4, .* --train.groups_at_once"),
            ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu to 4, .* --data.batch_size"),
            ({"bf16": {"enabled": True}}, 'bf16.enabled to True, .* --train.precision, .* write "auto"'),
            (
                {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
                "offload_optimizer.device to",
            ),
        ],
    )
    def test_settings(
        self, changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = json.loads((CONFIGS / "deepspeed" / "zero2.json").read_text()) | changes
        (tmp_path / "mine.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match=f"mine.json .*{words}"):
            self.read(tmp_path / "mine.json", monkeypatch)

    @pytest.mark.parametrize("content", [None, "{", "{}"])
    def test_a_file_that_is_none(self, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if content is not None:
            (tmp_path / "mine.json").write_text(content)
        with pytest.raises(InputError, match=r"settings in .*mine.json cannot be used: .*"):
            self.read(tmp_path / "mine.json", monkeypatch)

    def test_fp16(self) -> None:
        with pytest.raises(InputError, match="one loss scale for all modules: take bf16 or no, or DDP"):
            read_plugin("fp16")

    def test_stagewise(self, base: Config) -> None:
        config = replace(base, train=replace(base.train, schedule="stagewise"))
        with pytest.raises(InputError, match=r"train.schedule is 'stagewise'; .* take joint"):
            fill({"zero_optimization": {"stage": 2}}, config, 4, 1, 1000)

    def test_accelerate_that_goes_without_deepspeed(self) -> None:
        with pytest.raises(InputError, match="unset ACCELERATE_USE_CPU; DS_ACCELERATOR=cpu"):
            check_started(build_accelerator("no"))

    def test_plain_training_imports_no_deepspeed(self, base: Config, tmp_path: Path) -> None:
        train(replace(base, train=replace(base.train, max_steps=2)), tmp_path / "run")
        assert "deepspeed" not in sys.modules

    def read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
        read_plugin("no")
