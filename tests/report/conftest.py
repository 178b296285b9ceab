"""A report of two encoders with three seeds each, and Chromium to read pages in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run_folders import thesis_config, write_analyses, write_run
from simdist.report import __main__ as report_command
from tests.support.browsing import look

LEVELS = {"vgim_thesis": 0.5, "gim_thesis": 0.4}  # mean accuracies of probes of module 0


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six finished runs; the first one of each encoder has a decoder and analyses."""
    root = tmp_path_factory.mktemp("runs")
    for name, level in LEVELS.items():
        for seed in range(3):
            folder = write_run(root / f"{name}-{seed}", replace(thesis_config(name), seed=seed), level, lines=12)
            if seed == 0:
                write_analyses(folder, seed=len(name))
    return root


@pytest.fixture(scope="session")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with report.html and all tables."""
    out = tmp_path_factory.mktemp("report")
    report_command.report([runs], out)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the tests of the page need selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_script_timeout(60)
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def page(browser: Any, report: Path) -> Any:
    """The browser with the report in it, 1400 pixels wide, light."""
    look(browser, 1400, "light")
    browser.get((report / "report.html").as_uri())
    return browser
