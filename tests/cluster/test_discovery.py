"""A cluster out of the recorded output of its commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from simdist.cluster import discovery
from simdist.cluster.discovery import Limits, discover
from simdist.cluster.profile import Profile
from simdist.cluster.suggestion import suggest


def test_the_testbed(find) -> None:
    cluster = find("testbed")
    assert (cluster.name, cluster.settings["JobRequeue"]) == ("testbed", "0")
    assert [part.name for part in cluster.partitions] == ["cpu", "low", "high"]
    assert [(kind.count, kind.gpus, kind.gpu_type) for kind in cluster.kinds("low")] == [(3, 2, "a100")]
    assert [association.account for association in cluster.associations] == ["root"]  # and not those of other clusters
    assert [(entry.name, entry.nodes) for entry in cluster.reservations] == [("maint", "n1")]
    assert cluster.limits() == Limits(max_array_size=4, max_submit=10)


def test_limits_are_the_lowest_of_association_qos_and_partition(find) -> None:
    cluster = find("university")
    assert cluster.limits() == Limits(10001, 500)
    assert cluster.limits(Profile(account="speech")) == Limits(10001, 200)
    assert cluster.limits(Profile(account="speech", qos="gpu")) == Limits(10001, 100)
    assert cluster.limits(Profile(account="speech", qos="gpu", partition="gpu")) == Limits(10001, 40)


def test_limits_that_slurm_does_not_enforce(find) -> None:
    cluster = find("testbed", edit={"associations,limits,qos": "associations"})
    assert cluster.limits() == Limits(4, None)


def test_jobs_name_their_account_where_the_default_is_unknown(find) -> None:
    assert suggest(find("university", edit={"### user\ndefault": "### user\n"})).profile.account == "speech"
    profile = suggest(find("testbed", edit={"### user\nroot": "### user\n"})).profile
    assert profile.account == "root"


def test_without_accounting(find) -> None:
    cluster = find("testbed", silent=["sacctmgr"])
    assert cluster.associations == ()
    assert cluster.limits() == Limits(4, None)
    assert len(cluster.partitions) == 3


def test_no_slurm_and_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert discover(lambda words: "") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert discover() is None


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SECONDS", 0.2)
    assert discovery.ask(["sleep", "20"]) == discovery.ask(["false"]) == discovery.ask(["no-such-command"]) == ""
    assert discovery.ask(["echo", "yes"]) == "yes\n"
