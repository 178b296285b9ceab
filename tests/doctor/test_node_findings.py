"""What the doctor says of a node, from what the node saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import simdist
from simdist.cluster.profile import Profile
from simdist.doctor.findings import Finding
from simdist.doctor.machine import versions
from simdist.doctor.node import NodeReport, look
from simdist.doctor.node_check import compare

CODE = str(Path(simdist.__file__).parent)
COMMANDS = {"scontrol": True, "srun": True, "sbatch": True}
HERE: dict[str, str | None] = {"python": "3.11.7", "torch": "2.13.0"}
SEEN = NodeReport("n1", CODE, HERE, True, COMMANDS, 4, "n1", True)
PROFILE = Profile(gpus_per_node=4)


def find(report: NodeReport = SEEN, profile: Profile = PROFILE, shared: bool = True) -> dict[str, Finding]:
    found = compare(profile, report, HERE, shared=shared, runs=Path("/runs"))
    return {finding.subject: finding for finding in found}


def test_a_node_that_is_as_it_should_be() -> None:
    assert {finding.level for finding in find().values()} == {"ok"}


def test_a_folder_that_is_not_shared() -> None:
    unseen = find(replace(SEEN, sees_folder=False), shared=False)["shared folder"]
    assert (unseen.level, unseen.message) == ("error", "n1 does not see /runs")
    assert find(shared=False)["shared folder"].message == "n1 cannot write to /runs"


def test_other_versions_are_named() -> None:
    found = find(replace(SEEN, versions=HERE | {"torch": "2.6.0"}))["versions"]
    assert (found.level, found.message) == ("error", "on n1: torch 2.6.0 (2.13.0 here)")
    assert find(replace(SEEN, code="/old/simdist"))["versions"].level == "warning"


@pytest.mark.parametrize(("gpus", "level"), [(4, "ok"), (0, "error"), (3, "error")])
def test_gpus_that_torch_sees(gpus: int, level: str) -> None:
    assert find(replace(SEEN, gpus=gpus))["gpus"].level == level


def test_a_node_without_scontrol_needs_a_successor() -> None:
    found = find(replace(SEEN, commands=COMMANDS | {"scontrol": False}))["commands"]
    assert (found.level, found.message) == ("warning", "no scontrol on n1")


def test_a_node_that_nobody_reaches() -> None:
    lost = replace(SEEN, address=None)
    assert find(lost)["address"].level == "warning"
    assert find(lost, replace(PROFILE, nodes=2))["address"].level == "error"
    assert "at 10.0.0.7, because its name" in find(replace(SEEN, address="10.0.0.7"))["address"].message


def test_looking_around_answers_the_doctors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "localhost")
    monkeypatch.setenv("https_proxy", "http://proxy")
    (tmp_path / ".doctor-abc").write_text("abc")
    report = look(tmp_path, "abc", ask_gpus=False)
    assert (report.node, report.address, report.sees_folder, report.gpus) == ("localhost", "localhost", True, None)
    assert report.versions == versions()
    assert (tmp_path / ".doctor-abc-answer").exists()
    assert not look(tmp_path / "elsewhere", "abc", ask_gpus=False).sees_folder
