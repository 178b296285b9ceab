"""Files that others wrote: no code in them runs, no name in them leads elsewhere, and secrets stay out of ours."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from simdist import load_encoder
from simdist.config.load import experiment_parser, parse_experiment, read_config
from simdist.config.schema import Config, WandbConfig
from simdist.core.console import run
from simdist.core.errors import InputError
from simdist.core.files import sha256_of
from simdist.core.secrets import HIDDEN, redacted, redacted_words
from simdist.core.signals import SignalHandler
from simdist.data.splits import INDEX, MANIFEST, Index, open_split
from simdist.models.encoder import GreedyEncoder
from simdist.pack.__main__ import main as pack_main
from simdist.pack.librispeech import librispeech
from simdist.pack.packing import Options, pack
from simdist.pack.verifying import verify
from simdist.probe.labels import read_phones
from simdist.probe.training import ProbeProgress
from simdist.runs import folder as run_module
from simdist.runs.folder import Run
from simdist.training.checkpoint import Checkpoint, Retention, load_checkpoint, save_checkpoint
from tests.support import ROOT
from tests.support.packing_cases import small_corpus

KEY = "0123456789abcdef0123456789abcdefdeadbeef"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a payload makes if it runs."""
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.is_dir(), "the payload works"
    path.rmdir()
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    corpus = small_corpus(tmp_path / "corpus", speakers=2)
    plan = librispeech(corpus.source, test_fraction=0, phones=corpus.phones)
    pack(plan, tmp_path / "shards", Options(shard_samples=4), Console(quiet=True), SignalHandler())
    return tmp_path / "shards"


# --- code -------------------------------------------------------------------------------------------------------------


def checkpoint_of(tiny: Config, folder: Path) -> Path:
    model = GreedyEncoder(tiny.model, tiny.loss).state_dict()
    Run(folder, tiny).write()
    return save_checkpoint(
        folder / "checkpoints", Checkpoint(1, 4, "", model, [{"optimizer": {}, "scaler": {}}]), Retention(2)
    )


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "state.json"])
def test_a_checkpoint_runs_no_code(tiny: Config, tmp_path: Path, mark: Path, name: str) -> None:
    """Its manifest vouches for the planted file."""
    checkpoint = checkpoint_of(tiny, tmp_path / "run")
    planted = checkpoint / name
    torch.save([Payload(mark)], planted) if name == "optimizer.pt" else planted.write_bytes(pickle.dumps(Payload(mark)))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": planted.stat().st_size, "sha256": sha256_of(planted)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"^checkpoint {checkpoint} was not written by simdist"):
        load_checkpoint(checkpoint)
    assert not mark.exists()


def test_an_upstream_checkpoint_runs_no_code(tmp_path: Path, mark: Path) -> None:
    torch.save({"fullmodel.0.weight": Payload(mark)}, tmp_path / "model_9.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of tensors"):
        load_encoder(tmp_path / "model_9.ckpt", "sim_librispeech")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["objects", "pickle"])
def test_an_index_runs_no_code(shards: Path, mark: Path, kind: str) -> None:
    path = shards / "train" / INDEX
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        objects = np.array([Payload(mark)] * 8, dtype=object)
        columns = dict(np.load(path)) | {"key": objects}
        with zipfile.ZipFile(path, "w") as archive:
            for name, column in columns.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.save(member, column, allow_pickle=True)
    with pytest.raises(InputError, match=r"index\.npz cannot be used \(.*\); pack again with --overwrite"):
        open_split(shards, "train")
    assert not mark.exists()


def test_phones_run_no_code(shards: Path, mark: Path) -> None:
    split = open_split(shards, "train")
    planted = io.BytesIO()
    np.save(planted, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with split.shard_path(0).open("r+b") as tar:
        tar.seek(int(split.index.phones_offset[0]))
        tar.write(planted.getvalue())
    with pytest.raises(InputError, match=r"the phones of .* cannot be read \(Object arrays cannot be loaded"):
        read_phones(split, 0, 41)
    found = verify(shards, ["train"], 1, Console(quiet=True), SignalHandler())
    assert any("its phones cannot be read (Object arrays cannot be loaded" in problem.reason for problem in found)
    assert not mark.exists()


def test_an_unfinished_probe_runs_no_code(tmp_path: Path, mark: Path) -> None:
    torch.save({"state": Payload(mark)}, tmp_path / "progress.pt")
    assert ProbeProgress(tmp_path / "progress.pt", SignalHandler()).load() is None
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.mkdir [MARK]",
        "name: !!python/object/new:os.mkdir [MARK]",
        "data: {class_path: os.mkdir, init_args: {path: MARK}}",
        "model: {modules: [{class_path: os.mkdir, init_args: {path: MARK}}]}",
        "model: {modules: [{class_path: planted_module.Anything}]}",
        "data: {class_path: planted_module.Anything}",
        "model: planted_module.Anything",
    ],
)
def test_a_config_runs_no_code(tmp_path: Path, mark: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given on the command line, or lying in a run folder as its config.yaml; beside it a module to be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted_module.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Anything: ...\n")
    (tmp_path / "config.yaml").write_text(text.replace("MARK", str(mark)))
    with pytest.raises(InputError):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(InputError):
        load_encoder(tmp_path)
    assert not mark.exists()


FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "os.system", "yaml.load"}
NEEDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "np.save": ("allow_pickle", False)}


def test_nothing_in_the_project_unpickles_or_evaluates() -> None:
    """Whatever is added later: a call that could run what it reads has to say that it must not."""
    files = [*ROOT.glob("simdist/**/*.py"), *ROOT.glob("launch/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    assert len(files) > 60
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, place = ast.unparse(node.func), f"{path}:{node.lineno}"
            keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            assert name not in FORBIDDEN, f"{place} calls {name}"
            assert keywords.get("shell") is not True, f"{place} runs a shell"
            if name in NEEDS:
                keyword, value = NEEDS[name]
                assert keywords.get(keyword, ...) is value, f"{place}: {name} without {keyword}={value}"


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = ["/etc/passwd", "../other/shard-000000.tar", "..", "", "a/b.tar", "a\\b.tar", "a\0b", 7]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["shard", "label"])
def test_names_in_a_manifest_stay_in_its_folder(shards: Path, name: object, where: str, capsys) -> None:
    path = shards / "train" / MANIFEST
    stored = json.loads(path.read_text())
    if where == "shard":
        stored["shards"][0]["name"] = name
    else:
        stored["labels"][str(name)] = stored["labels"].pop("speaker")
    path.write_text(json.dumps(stored))
    if where == "shard" or name != 7:
        with pytest.raises(InputError) as raised:
            open_split(shards, "train")
        words = "Expected `str`, got `int`" if name == 7 else f"it names {name!r}, which is no plain file name"
        assert str(raised.value).startswith(f"{path} is not a manifest of simdist ({words}")
        with pytest.raises(SystemExit) as ended:  # packing reads it too, by another way
            run(pack_main, ["librispeech", str(shards.parent / "corpus" / "source"), str(shards)])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", ["../../evil", "/evil", "a/b", "..", "a\\b"])
def test_keys_in_an_index_are_plain(shards: Path, key: str) -> None:
    path = shards / "train" / INDEX
    index = Index.load(path)
    keys = index.key.astype("<U40")
    keys[3] = key
    replace(index, key=keys).save(path)
    with pytest.raises(InputError) as raised:
        open_split(shards, "train")
    assert f"{path} cannot be used (it names a sample {key!r}, which is no plain file name)" in str(raised.value)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("shard", 2, "it names a shard that the manifest does not have"),
        ("shard", -1, "it names a shard that the manifest does not have"),
        ("offset", -512, "does not lie inside its shard"),
        ("offset", 1 << 40, "does not lie inside its shard"),
        ("size", 1 << 40, "does not lie inside its shard"),
        ("num_samples", 0, "does not lie inside its shard"),
    ],
)
def test_an_index_points_into_its_shards(shards: Path, column: str, value: int, said: str) -> None:
    path = shards / "train" / INDEX
    index = Index.load(path)
    getattr(index, column)[3] = value
    index.save(path)
    with pytest.raises(InputError, match=said):
        open_split(shards, "train")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/etc/cron.d/evil", tarfile.REGTYPE, "its name is not a plain file name"),
        ("../evil.flac", tarfile.REGTYPE, "its name is not a plain file name"),
        ("evil.flac", tarfile.SYMTYPE, "is no plain file but a link"),
        ("evil.flac", tarfile.LNKTYPE, "is no plain file but a link"),
    ],
)
def test_members_that_lead_out_of_a_tar_are_found_by_verify(shards: Path, name: str, kind: bytes, said: str) -> None:
    """Training never unpacks a tar, but others do; the manifest vouches for this one."""
    split = open_split(shards, "train")
    with tarfile.open(split.shard_path(0), "a") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    stored = json.loads((split.folder / MANIFEST).read_text())
    path = split.shard_path(0)
    stored["shards"][0] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (split.folder / MANIFEST).write_text(json.dumps(stored))
    (problem,) = verify(shards, ["train"], 1, Console(quiet=True), SignalHandler())
    assert problem.path == f"{path}:{name}"
    assert problem.reason.startswith(said)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"login {KEY}", f"login {HIDDEN}"),
        ("wandb_v1_" + "aB3" * 12, HIDDEN),
        ("+WANDB_API_KEY=hunter2hunter2", f"+WANDB_API_KEY={HIDDEN}"),
        ("wandb.login(key, api_key='hunter 2')", f"wandb.login(key, api_key={HIDDEN})"),
        ('{"password": "x y", "a": 1}', f'{{"password": {HIDDEN}, "a": 1}}'),
        ("git clone https://me:hunter2@example.org/x", f"git clone https://me:{HIDDEN}@example.org/x"),
        ("value of-the-variable", f"value {HIDDEN}"),
        ("sha256 " + "0" * 64, "sha256 " + "0" * 64),
        ("3 tokens per second; the secret of step 7", "3 tokens per second; the secret of step 7"),
        ("--data.root /data/tokens", "--data.root /data/tokens"),
    ],
)
def test_secrets_are_known_by_value_name_shape_and_place(text: str, shown: str) -> None:
    environ = {"MY_TOKEN": "of-the-variable", "TOKENIZERS_PARALLELISM": "per second", "PASSWORD": "short"}
    assert redacted(text, environ) == shown


def test_the_word_after_a_secret_option_is_hidden() -> None:
    words = ["train", "--wandb.api_key", "hunter2", "--token=hunter2", "--run-dir", "hunter"]
    shown = ["train", "--wandb.api_key", HIDDEN, f"--token={HIDDEN}", "--run-dir", "hunter"]
    assert redacted_words(words, {}) == shown


@pytest.mark.parametrize(
    "options",
    [
        ["--wandb.api_key", KEY],
        [f"--wandb.api_key={KEY}"],
        [KEY],
        ["--wandb.mode", KEY],
        ["--wandb.project", KEY],
        ["--wandb.entity", KEY],
        ["--name", KEY],
        ["--config", "FILE"],
    ],
)
def test_a_key_on_the_command_line_or_in_a_config_is_refused_and_not_repeated(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key.yaml").write_text(f"wandb: {{api_key: {KEY}}}\n")
    argv = [str(tmp_path / "key.yaml") if word == "FILE" else word for word in options]
    with pytest.raises(SystemExit) as ended:
        parse_experiment(experiment_parser("train", ""), argv)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert said.err.count("\n") == 1


def test_a_config_that_was_read_earlier_may_hold_no_key(tiny: Config) -> None:
    with pytest.raises(ValueError, match=r"entity looks like an API key. Export it as WANDB_API_KEY"):
        replace(tiny, wandb=WandbConfig(entity=KEY))


def test_environment_json_holds_no_secret(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-value-without-shape")
    monkeypatch.setenv("SLURM_JOB_COMMENT", "a comment")
    monkeypatch.setenv("SLURM_JOB_NAME", "hf_" + "aBcD" * 9)
    monkeypatch.setenv("SLURM_JOB_PARTITION", "a-value-without-shape")
    monkeypatch.setattr(sys, "argv", ["train", "--token", "hunter2hunter2", f"--x={KEY}"])
    difference = "+os.environ['WANDB_API_KEY'] = 'hunter2hunter2'\n+key('a-value-without-shape')\n+kept"
    monkeypatch.setattr(run_module, "_git", lambda *words: difference if words[0] == "diff" else KEY)
    Run(tmp_path / "run", tiny).write()
    text = (tmp_path / "run" / "environment.json").read_text()
    written = json.loads(text)
    assert "hunter2" not in text
    assert "a-value-without-shape" not in text
    assert written["command"] == ["train", "--token", HIDDEN, f"--x={HIDDEN}"]
    assert written["git_commit"] == KEY, "a commit is no secret"
    assert written["git_diff"].endswith("+kept")
    assert written["slurm"] == {"SLURM_JOB_NAME": HIDDEN, "SLURM_JOB_PARTITION": HIDDEN}, "only variables that we name"


def test_a_run_that_is_mirrored_to_wandb_holds_no_key(tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, wandb=replace(tiny.wandb, mode="offline"), train=replace(tiny.train, max_steps=2))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    command = [sys.executable, "-m", "simdist.train", "--config", str(tmp_path / "config.yaml"), "--run-dir"]
    environ = os.environ | {"WANDB_API_KEY": KEY, "HF_TOKEN": "a-value-without-shape"}
    ended = subprocess.run([*command, str(tmp_path / "run")], env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for secret in (KEY, "a-value-without-shape"):
        assert not any(secret.encode() in content for content in written)
        assert secret not in ended.stdout + ended.stderr


def test_wandb_sees_no_secret_of_the_command_line_and_no_changes_of_the_code(tmp_path: Path) -> None:
    program = (
        "import sys, wandb; from simdist.runs.wandb_run import start_wandb; "
        f"run = start_wandb(project='x', mode='offline', dir={str(tmp_path)!r}); "
        "assert run.settings.disable_git and run.settings.disable_code; run.finish(); print(sys.argv[-1])"
    )
    ended = subprocess.run([sys.executable, "-c", program, "--token", "hunter2hunter2"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "hunter2hunter2" in ended.stdout, "the program itself keeps its command line"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(HIDDEN.encode() in content for content in written)
    assert not any(b"hunter2" in content for content in written)
    callers = [path.name for path in ROOT.glob("simdist/**/*.py") if "wandb.init(" in path.read_text()]
    assert callers == ["wandb_run.py"]


# --- who may read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_packing_creates_files_with_the_users_umask(umask: int, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    command = [sys.executable, "-m", "simdist.pack", *corpus.arguments(tmp_path / "out", "--workers", "2")]
    subprocess.run(command, check=True, umask=umask, capture_output=True)
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(made) > 8
    for path in made:
        if path.name != ".pack.lock":
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
