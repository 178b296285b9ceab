"""The documentation site: it builds without a warning, and its reference pages agree with the code."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from simdist.__main__ import COMMANDS, LAUNCHER
from simdist.config.decoder import DecodingConfig
from simdist.config.schema import Config, to_dict
from simdist.core import errors
from simdist.data.splits import Index, Manifest
from tests.support import ROOT

REFERENCE = ROOT / "docs" / "reference"


def first_cells(page: str) -> list[str]:
    """The names in backticks, and the numbers, in the first column of a page's tables."""
    lines = (REFERENCE / page).read_text().splitlines()
    cells = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`|^(?=\d)(\d+)$", cell) for name in name if name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_command_and_its_options_are_on_the_site(site: Path) -> None:
    text = text_of(site / "reference" / "command_line.html")
    for command in COMMANDS | LAUNCHER:
        assert (
            f"usage: python -m simdist.{command}" in text
            or f"usage: python launch/{command}.py" in text
            or (f"usage: simdist {command}" in text)
        ), command
    assert {"--optim.lr", "--examples-per-class", "--start-at", "--bandwidth", "--subsets"} - set(
        re.findall(r"--[a-z][\w.-]*", text)
    ) == set()


def test_every_key_is_on_the_site(site: Path) -> None:
    text = text_of(site / "reference" / "configuration.html")
    keys = {f"{section}.{key}" for section, keys in to_dict(Config()).items() if isinstance(keys, dict) for key in keys}
    own = {key for key, value in to_dict(DecodingConfig()).items() if not isinstance(value, dict)}
    for key in keys | own | {"model.modules[].layers[].kernel", "name", "seed"}:
        assert re.search(rf"(?m)^{re.escape(key)}$", text), key


def test_what_the_authors_code_does_is_on_the_site(site: Path) -> None:
    text = text_of(site / "tasks" / "reference_implementation.html")
    assert "In a clone" not in text
    assert {"e472aab", "91eee48", "5710507"} <= set(re.findall(r"[0-9a-f]{7}", text))
    table = yaml.safe_load((ROOT / "docs" / "reference_implementation.yaml").read_text())["tables"]
    for cell in (cell for rows in table.values() for row in rows for cell in row):
        assert cell.replace("`", "") in text, cell


def test_names_of_pages_become_links() -> None:
    """Outside code blocks, where a page of that name exists, and only once."""
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    names = "see `docs/tasks/slurm.md` and [`docs/tasks/slurm.md`](slurm.md), `docs/gone.md`"
    text = f"{names}\n```text\n`docs/tasks/slurm.md`\n```"
    assert hook.with_links(text, Path("explanation")) == text.replace(
        "see `docs/tasks/slurm.md`", "see [`docs/tasks/slurm.md`](../tasks/slurm.md)"
    )


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        local = re.findall(r'href="(?!https?:|#|\.?"|mailto:)([^"#]+)', page.read_text())
        assert [path for path in local if not (page.parent / path).exists() and "404" not in page.name] == [], page


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], page


def test_exit_codes_are_those_of_the_code() -> None:
    codes = sorted(value for name, value in vars(errors).items() if name.startswith("EXIT_"))
    assert sorted(map(int, first_cells("exit_codes.md"))) == codes
    assert 128 + signal.SIGINT in codes


def test_the_shard_format_is_that_of_the_code() -> None:
    cells = set(first_cells("shards.md"))
    assert set(Manifest.__dataclass_fields__) <= cells
    assert set(Index.__dataclass_fields__) - {"labels"} | {"label_NAME"} <= cells


def test_every_preset_is_on_its_page() -> None:
    assert set(first_cells("presets.md")) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_environment_variables_are_those_of_the_code() -> None:
    code = "".join(
        path.read_text()
        for folder in ("simdist", "launch", "slurm")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".sbatch") and "testbed" not in path.parts
    )
    ours = set(re.findall(r"`(SIMDIST_\w+)`", (REFERENCE / "environment.md").read_text()))
    assert ours - {"SIMDIST_SHARED"} == set(re.findall(r"SIMDIST_[A-Z_]*[A-Z]", code))
