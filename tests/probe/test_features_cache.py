"""Features on disk: right, made once, bounded, and able to survive damage."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simdist.config.load import read_config
from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler
from simdist.data.splits import open_split
from simdist.probe import cache as cache_module
from simdist.probe.cache import CacheEntry, FeatureCache, Features, entry_bytes, shard_rows
from simdist.probe.examples import LiveExamples
from simdist.probe.feature_extractors import FeatureExtractor, mfcc_extractor, trained_extractor, untrained_extractor
from simdist.probe.feature_spec import FeatureSpec
from simdist.probe.labels import read_targets
from tests.support.damage import flip, unchanged_times

CPU = torch.device("cpu")
VIEWS = (FeatureSpec("frames"), FeatureSpec("pooled", "mean"), FeatureSpec("pooled", "max", crop=5120, crops=2))


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_SAMPLES", 10 * 16_000)


def entries(
    trained: Path, *specs: FeatureSpec, split: str = "test", extractor: FeatureExtractor | None = None
) -> list[CacheEntry]:
    config = read_config(trained / "config.yaml")
    extractor = extractor or trained_extractor(trained / "checkpoints" / "step_00000120", config)
    return [CacheEntry(extractor, open_split(config.data.root, split), spec) for spec in specs]


def read(
    folder: Path, wanted: list[CacheEntry], limit_gb: float = 1.0, counted: list[int] | None = None
) -> list[Features]:
    report = (lambda count: None) if counted is None else counted.append
    with FeatureCache(folder, limit_gb, SignalHandler()).opened(wanted, CPU, report) as features:
        return features


def test_stored_features_are_those_of_the_audio(trained: Path, tmp_path: Path) -> None:
    """Against encoding one utterance, or one crop, at a time."""
    wanted = entries(trained, *VIEWS)
    frames, whole, crops = read(tmp_path, wanted)
    for features, spec, label in zip((frames, whole, crops), VIEWS, ("phone", "speaker", "speaker"), strict=True):
        targets = read_targets(wanted[0].split, label)
        for module in (0, 3):
            stored = features.of_module(module)
            live = LiveExamples(wanted[0].extractor, module, spec, wanted[0].split, targets, CPU)
            for place in (0, live.num_utterances - 1):
                turns = [live.batch([place], turn).features for turn in range(spec.crops)]
                found = stored[int(targets.rows[place])].float()
                assert torch.allclose(found, torch.cat(turns), rtol=2e-3, atol=2e-3)


def test_views_share_one_pass_and_a_second_look_encodes_nothing(trained: Path, tmp_path: Path) -> None:
    wanted, counted = entries(trained, *VIEWS), []
    read(tmp_path, wanted, counted=counted)
    assert sum(counted) == len(wanted[0].split.index)
    assert len(counted) == len(shard_rows(wanted[0].split)) > 1
    read(tmp_path, wanted, counted=counted)
    assert sum(counted) == len(wanted[0].split.index)
    alone = read(tmp_path / "alone", wanted[1:2])[0]
    together = read(tmp_path, wanted[1:2])[0]
    assert all(torch.equal(a["module_2"], b["module_2"]) for a, b in zip(alone.shards, together.shards, strict=True))


def test_jobs_at_once_share_the_work(trained: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    found: list[list[Features]] = []
    wanted = entries(trained, *VIEWS)
    jobs = [threading.Thread(target=lambda: found.append(read(tmp_path, wanted, counted=counted))) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sum(counted) == len(wanted[0].split.index)
    assert all(torch.equal(f[0].shards[-1]["module_3"], found[0][0].shards[-1]["module_3"]) for f in found)


def test_other_weights_data_or_views_are_other_entries(trained: Path) -> None:
    config = read_config(trained / "config.yaml")
    found = entries(trained, *VIEWS)
    found += entries(trained, *VIEWS, split="train")
    found += entries(trained, VIEWS[0], replace(VIEWS[0], sampled=True), extractor=untrained_extractor(config))
    found += entries(trained, VIEWS[0], extractor=mfcc_extractor())
    found += entries(trained, VIEWS[0], extractor=trained_extractor(trained / "checkpoints" / "step_00000060", config))
    assert len({entry.key for entry in found}) == len(found)


def test_sampled_latents_are_drawn_and_repeat(trained: Path, tmp_path: Path) -> None:
    mean, sampled = FeatureSpec("pooled"), FeatureSpec("pooled", sampled=True, seed=1)
    (plain,), (first,), (again,) = (
        read(tmp_path / name, entries(trained, spec)) for name, spec in (("a", mean), ("b", sampled), ("c", sampled))
    )
    assert torch.equal(first.shards[0]["module_0"], again.shards[0]["module_0"])
    assert not torch.allclose(first.shards[0]["module_0"], plain.shards[0]["module_0"], atol=1e-3)


@pytest.mark.parametrize("damage", ["cut", "rotten", "renamed"])
def test_a_damaged_shard_is_encoded_again(
    trained: Path, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = entries(trained, VIEWS[1])
    whole = read(tmp_path, wanted)[0].shards[1]["module_3"].clone()
    shard = sorted((tmp_path / wanted[0].key).glob("shard-*"))[1]
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:-100])
    elif damage == "rotten":
        with unchanged_times(shard):
            flip(shard, len(content) - 100)
    else:  # rot in the header: two modules change places
        swapped = content.replace(b"module_3", b"module_X").replace(b"module_2", b"module_3")
        shard.write_bytes(swapped.replace(b"module_X", b"module_2"))
    counted: list[int] = []
    assert torch.equal(read(tmp_path, wanted, counted=counted)[0].shards[1]["module_3"], whole)
    assert sum(counted) == len(shard_rows(wanted[0].split)[1])
    assert capfd.readouterr().err == f"features in {shard} are damaged; computing them again\n"


def test_features_that_are_not_finite_are_not_stored(trained: Path, tmp_path: Path) -> None:
    wanted = entries(trained, VIEWS[0])
    next(wanted[0].extractor.network.parameters()).data.fill_(1e30)
    with pytest.raises(
        InputError, match=r"^features of the encoder of step 120 \(module_\d\) are NaN, infinite or too"
    ):
        read(tmp_path, wanted)
    assert not list((tmp_path / wanted[0].key).glob("shard-*"))


def test_the_bound_holds_and_the_oldest_make_room(trained: Path, tmp_path: Path) -> None:
    first, second, third = (entries(trained, FeatureSpec("pooled", crop=5120, seed=seed))[0] for seed in range(3))
    size = entry_bytes(first)
    stored = sum(f.stat().st_size for e in [first] if read(tmp_path, [e]) for f in (tmp_path / e.key).glob("shard-*"))
    assert size <= stored < 1.5 * size + 4096 * len(shard_rows(first.split))
    limit = 2.5 * size / 10**9
    read(tmp_path, [second], limit)
    read(tmp_path, [first], limit)  # now the second is the one used longest ago
    read(tmp_path, [third], limit)
    assert {path.parent.name for path in tmp_path.glob("*/entry.json")} == {first.key, third.key}
    cache = FeatureCache(tmp_path, limit, SignalHandler())
    with (
        cache.opened([first, third], CPU, lambda count: None),
        pytest.raises(InputError, match=r"may hold .* GB are in use; raise --cache-gb"),
        cache.opened([second], CPU, lambda count: None),
    ):
        pass
    with pytest.raises(InputError, match="the features need"):
        read(tmp_path / "small", [first], 0.5 * size / 10**9)


def test_a_cache_that_cannot_be_written_is_said(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"feature cache .* cannot be used: .*; name another with --cache"):
        read(tmp_path / "file", entries(trained, VIEWS[1]))
