"""Options of `launch/sweep.py`: defaults, words that cannot be, and what changes the resources of jobs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from launch import sweep
from launch.options import default_cluster, default_sweep, read_time
from launch.plan import build
from launch.sweep_file import read_sweep
from simdist.cluster.profile import load_profile
from simdist.core.errors import InputError
from tests.support.sweeps import SMALL, pack_manifests

OPTIONS = ("--partition=a", "--nodes=2", "--gpus-per-node=a100:2", "--time=02:00:00", "--setup=module load cuda")
NOT_CONFIGURED = "sinfo: fatal: Could not establish a configuration source\n"
OLD_NOT_CONFIGURED = (
    "sinfo: error: s_p_parse_file: unable to status file /etc/slurm/slurm.conf: No such file or directory"
)
DOWN = "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_CONF", raising=False)


# --- defaults: the sweep ----------------------------------------------------------------------------------------------


def test_without_a_corpus_the_default_sweep_makes_one() -> None:
    chosen = default_sweep()
    assert chosen.file.stem == "default"
    assert "data/librispeech is not packed" in chosen.reason
    plan, configs = build(read_sweep(chosen.file))
    kinds = [job.kind for job in plan.jobs.values()]
    assert {"pack", "train", "probe", "decode", "analyze", "report"} == set(kinds)
    assert kinds.count("train") == kinds.count("decode") == 2
    assert {config.model.head for config in configs.values()} == {"variational", "mu"}  # SIM and GIM


def test_where_librispeech_is_packed_it_is_used_and_never_packed_again() -> None:
    pack_manifests(Path("data/librispeech"), "speaker", "phone")
    chosen = default_sweep(["seeds=[0]"])
    assert (chosen.file.stem, chosen.reason) == ("default_librispeech", "on data/librispeech")
    plan, configs = build(read_sweep(chosen.file, chosen.overrides))
    assert "pack" not in {job.kind for job in plan.jobs.values()}
    assert {config.data.root for config in configs.values()} == {"data/librispeech"}


def test_half_a_corpus_is_none() -> None:
    pack_manifests(Path("data/librispeech"), "speaker")
    (Path("data/librispeech/test/manifest.json")).unlink()
    assert default_sweep().file.stem == "default"


@pytest.mark.parametrize("override", ["data.root=data/mine", "config.data.root=data/mine"])
def test_a_corpus_of_the_users_own_is_not_replaced_by_synthetic_speech(override: str) -> None:
    chosen = default_sweep([override])
    plan, _ = build(read_sweep(chosen.file, [*chosen.overrides, override]))
    assert "pack" not in {job.kind for job in plan.jobs.values()}
    assert chosen.reason == "on data/mine"


def test_without_phone_labels_there_is_no_probe_for_phones() -> None:
    pack_manifests(Path("data/librispeech"), "speaker")
    chosen = default_sweep()
    assert "no phone labels" in chosen.reason
    plan, _ = build(read_sweep(chosen.file, chosen.overrides))
    assert "phones" not in {job.stage for job in plan.jobs.values()}
    assert "speakers" in {job.stage for job in plan.jobs.values()}


# --- defaults: the cluster --------------------------------------------------------------------------------------------


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which SLURM is installed."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "sbatch").write_text("#!/bin/sh\n")
    (bin / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin))


def answering(error: Exception | None) -> Callable[[Sequence[str]], str]:
    def ask(words: Sequence[str]) -> str:
        if error is not None:
            raise error
        return "low*\n"

    return ask


def failing(stderr: str) -> subprocess.CalledProcessError:
    return subprocess.CalledProcessError(1, "sinfo", stderr=stderr)


def test_without_slurm_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert default_cluster() == ("local", "there is no SLURM on this machine")


@pytest.mark.usefixtures("sbatch")
def test_slurm_that_answers_is_taken() -> None:
    assert default_cluster(answering(None))[0] == "slurm"


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize(
    "error",
    [
        failing(NOT_CONFIGURED),
        failing(OLD_NOT_CONFIGURED),
        subprocess.TimeoutExpired("sinfo", 30, stderr=OLD_NOT_CONFIGURED.encode()),
    ],
)
def test_slurm_that_is_not_configured_is_not_taken(error: Exception) -> None:
    cluster, reason = default_cluster(answering(error))
    assert cluster == "local"
    assert "not configured" in reason


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize(
    "error", [failing(DOWN), subprocess.TimeoutExpired("sinfo", 30), FileNotFoundError(2, "sinfo")]
)
def test_slurm_that_does_not_answer_is_an_error_and_never_this_machine(error: Exception) -> None:
    with pytest.raises(InputError, match="SLURM does not answer") as caught:
        default_cluster(answering(error))
    assert "--cluster local" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("sbatch")
def test_a_wrong_slurm_conf_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")  # somebody means a cluster
    with pytest.raises(InputError, match="SLURM does not answer"):
        default_cluster(answering(failing(OLD_NOT_CONFIGURED)))


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="SLURM is not installed")
def test_debians_slurm_without_a_configuration_is_recognized() -> None:
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine is a cluster")
    assert default_cluster()[0] == "local"


# --- words that cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smoke", "default"], r"'default' is a second SWEEP after 'smoke'\. .*key=value"),
        (["--jobs", "0", "smoke"], "--jobs is 0; it must be at least 1"),
        (
            ["configs/sweeps/smoke.yaml"],
            r"smoke\.yaml does not exist; did you mean 'smoke', which comes",
        ),
        (
            ["--cluster", "locl", "smoke"],
            r"--cluster is 'locl'; it must be local, debug, slurm, cpu",
        ),
        (["nosuch"], r"sweep file nosuch does not exist; those in .*sweeps are .*default\.yaml"),
    ],
)
def test_words_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep.main(["--cluster", "local", *words])


@pytest.mark.parametrize(
    ("word", "written"), [("--seeds", "seeds=VALUE"), ("--train.max_steps=3", "train.max_steps=VALUE")]
)
def test_a_key_with_dashes_is_answered_with_how_to_write_it(word: str, written: str) -> None:
    with pytest.raises(InputError, match=f"is a key, not an option. Write {written}, without dashes"):
        sweep.main([word, "3"])


# --- resources of jobs on SLURM ---------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The small sweep, in a home without profiles and on a machine without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "SIMDIST_CLUSTER", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return [str(file), f"--runs={tmp_path}/runs", f"--sweeps={tmp_path}/sweeps"]


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_options_of_slurm_are_refused_on_this_machine(arguments: list[str], cluster: str) -> None:
    with pytest.raises(InputError, match=f"--partition, --nodes, .*for jobs on SLURM, but --cluster is {cluster}"):
        sweep.main([*arguments, f"--cluster={cluster}", *OPTIONS])


def test_a_dry_run_shows_the_choice(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*arguments, "--cluster=slurm", "--dry-run", *OPTIONS]) == 0
    said = capsys.readouterr().out
    assert "  training: partition a, 2 nodes, 2 a100 GPUs per node, 2 processes of 4 cores, 120 minutes" in said
    assert "warning: SLURM does not answer here" in said
    assert "to change this: --partition" in said
    for line in ("#SBATCH --gpus-per-node=a100:2", "#SBATCH --nodes=2", "#SBATCH --time=120", "module load cuda"):
        assert line in said
    assert not (tmp_path / "sweeps").exists()


def test_a_silent_slurm_is_no_sweep_without_gpus(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"SLURM does not answer\. Try again, name a profile .*--cluster local"):
        sweep.main([*arguments, "--cluster=slurm"])
    assert not (tmp_path / "sweeps").exists()


def test_setup_may_hold_an_assignment_and_be_repeated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    setup = ["--setup", "CUDA_HOME=/opt/cuda", "--setup=module load cuda"]
    assert sweep.main([*arguments, "--cluster=gpu", "--dry-run", *setup, "train.max_steps=3"]) == 0
    assert "CUDA_HOME=/opt/cuda\nmodule load cuda\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "option", "message"),
    [
        ("gpu", "--jobs=2", "--jobs is for --cluster local, but --cluster is gpu"),
        ("local", "--wait", "--wait: for jobs on SLURM, but --cluster is local"),
        ("debug", "--prune", "--prune: for jobs on SLURM, but --cluster is debug"),
        ("gpu", "--every=0", "--every is 0; it must be at least 1 second"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str], cluster: str, option: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sweep.main([*arguments, f"--cluster={cluster}", option, "--dry-run"])


def test_options_on_top_of_a_named_profile(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*arguments, "--cluster=gpu", "--dry-run", "--account=speech", "--mem=100G"]) == 0
    said = capsys.readouterr().out
    assert "profile gpu:" in said
    assert "#SBATCH --account=speech" in said
    assert "#SBATCH --mem=100G" in said
    assert "mem-per-gpu" not in said


def test_the_choice_is_written_to_the_sweeps_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMDIST_CLUSTER", "gpu")
    with pytest.raises(InputError, match="no SLURM on this machine"):  # found out by the submission
        sweep.main([*arguments, "--cluster=slurm", "--time=90"])
    written = load_profile(tmp_path / "sweeps" / "small" / "cluster.yaml")
    assert written.partition == load_profile("gpu").partition
    assert written.time_minutes == 90


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("240", 240),
        ("04:00:00", 240),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("1-12:30", 2190),
        ("30:00", 30),
        ("00:00:10", 1),
    ],
)
def test_times_as_sbatch_takes_them(text: str, minutes: int) -> None:
    assert read_time(text) == minutes


@pytest.mark.parametrize("text", ["4h", "", "1:2:3:4", "-5"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match=r"--time is '.*'; give minutes, HH:MM:SS, or D-HH:MM:SS"):
        read_time(text)
