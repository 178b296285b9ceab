"""The sweep and the cluster that are taken where none is named, and what is said of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch import sweep
from launch.defaults import default_cluster, default_sweep
from launch.plan import build
from launch.sweep_file import read_sweep
from simdist.core.errors import InputError

NOT_CONFIGURED = "sinfo: fatal: Could not establish a configuration source\n"
OLD_NOT_CONFIGURED = (
    "sinfo: error: s_p_parse_file: unable to status file /etc/slurm/slurm.conf: No such file or directory"
)
DOWN = "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_CONF", raising=False)


def pack(root: Path, *labels: str) -> None:
    """Manifests as a packed corpus has them."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "manifest.json").write_text(json.dumps({"labels": {label: ["a", "b"] for label in labels}}))


# --- the sweep --------------------------------------------------------------------------------------------------------


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
    pack(Path("data/librispeech"), "speaker", "phone")
    chosen = default_sweep(["seeds=[0]"])
    assert (chosen.file.stem, chosen.reason) == ("default_librispeech", "on data/librispeech")
    plan, configs = build(read_sweep(chosen.file, chosen.overrides))
    assert "pack" not in {job.kind for job in plan.jobs.values()}
    assert {config.data.root for config in configs.values()} == {"data/librispeech"}


def test_half_a_corpus_is_none() -> None:
    pack(Path("data/librispeech"), "speaker")
    (Path("data/librispeech/test/manifest.json")).unlink()
    assert default_sweep().file.stem == "default"


@pytest.mark.parametrize("override", ["data.root=data/mine", "config.data.root=data/mine"])
def test_a_corpus_of_the_users_own_is_not_replaced_by_synthetic_speech(override: str) -> None:
    chosen = default_sweep([override])
    plan, _ = build(read_sweep(chosen.file, [*chosen.overrides, override]))
    assert "pack" not in {job.kind for job in plan.jobs.values()}
    assert chosen.reason == "on data/mine"


def test_without_phone_labels_there_is_no_probe_for_phones() -> None:
    pack(Path("data/librispeech"), "speaker")
    chosen = default_sweep()
    assert "no phone labels" in chosen.reason
    plan, _ = build(read_sweep(chosen.file, chosen.overrides))
    assert "phones" not in {job.stage for job in plan.jobs.values()}
    assert "speakers" in {job.stage for job in plan.jobs.values()}


# --- the cluster ------------------------------------------------------------------------------------------------------


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


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "default_cluster", lambda: ("local", "there is no SLURM on this machine"))


@pytest.mark.usefixtures("no_slurm")
def test_it_says_what_it_chose_and_how_to_choose_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--dry-run", "seeds=[0,1]", "train.max_steps=3"]) == 0
    sweep_line, cluster_line, first, *_ = capsys.readouterr().out.splitlines()
    assert sweep_line.startswith("sweep: default, a small one on synthetic speech")
    assert sweep_line.endswith("(another: `python launch/sweep.py SWEEP.yaml`)")
    assert cluster_line == "cluster: local, because there is no SLURM on this machine (another: `--cluster NAME`)"
    assert first == "default: 4 runs, 38 jobs"  # overrides work without a file


def test_what_was_chosen_by_the_user_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--dry-run", "--cluster", "local", "smoke"]) == 0
    assert capsys.readouterr().out.startswith("smoke: 4 runs, 14 jobs")


def test_a_wrong_override_names_the_file_that_was_chosen() -> None:
    with pytest.raises(InputError, match=r"default\.yaml: seeds must be a whole number, not x"):
        sweep.main(["--cluster", "local", "seeds=[x]"])


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


def test_a_missing_package_is_named_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # as if it were not installed
    expected = "espeakng_loader (for pack synthetic). Install: pip install -e '.[demo]'"
    with pytest.raises(InputError) as caught:
        sweep.main(["--cluster", "local", "smoke"])
    assert expected in str(caught.value)
    assert not Path("sweeps").exists()
    assert sweep.main(["--cluster", "cpu", "--dry-run", "smoke"]) == 0  # jobs on SLURM may have another Python
    assert f"warning: missing packages: {expected}" in capsys.readouterr().out


def test_a_corpus_that_nobody_packs_is_named_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cluster", "local", "data.root=data/mine"]
    with pytest.raises(InputError, match=r"data\.root is data/mine, which has no packed split 'train'.*simdist\.pack"):
        sweep.main(words)
    assert not Path("sweeps").exists()
    assert sweep.main([*words, "--dry-run"]) == 0
    assert "warning: " in capsys.readouterr().out


def test_a_second_process_is_told_how_to_follow_and_stop_the_first() -> None:
    with sweep.sole_owner(Path("sweeps/smoke")), pytest.raises(InputError) as caught:
        sweep.sole_owner(Path("sweeps/smoke"))
    assert "`python launch/status.py smoke --watch`" in str(caught.value)
    assert "`python launch/cancel.py smoke`" in str(caught.value)


def test_jobs_below_a_failed_one_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    pack(Path("data/mine"), "speaker")  # manifests of shards that do not exist
    words = ["--cluster", "local", "data.root=data/mine", "--jobs", "2"]
    assert sweep.main(words) == 1
    text = capsys.readouterr().out
    assert text.count(" failed with exit code 2:") == 3  # two trainings, and a report about nothing
    assert text.count("7 jobs will not run because train/") == 2
    assert "0 of 17 jobs are done" in text
