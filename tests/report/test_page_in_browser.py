"""The page in a real browser: it loads, sorts, plays what its slider says, and is readable without JavaScript."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.browsing import look

pytest.importorskip("selenium", reason="the tests of the page need selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser
DRAW = """
const done = arguments[arguments.length - 1];
(async () => {
  for (const chart of document.querySelectorAll('.chart')) {
    chart.scrollIntoView();
    for (let tries = 0; tries < 200 && !chart.classList.contains('is-live'); tries++)
      await new Promise((next) => setTimeout(next, 25));
  }
  done(document.querySelectorAll('.chart:not(.is-live)').length);
})();
"""
PIXELS = """
const canvases = (root) => [...root.querySelectorAll('*')].flatMap((each) =>
  each.tagName === 'CANVAS' ? [each] : each.shadowRoot ? canvases(each.shadowRoot) : []);
const blue = ([r, g, b]) => Math.abs(r - 0x00) + Math.abs(g - 0x72) + Math.abs(b - 0xb2) < 60;
return [...document.querySelectorAll('.chart .live')].map((chart) => canvases(chart).reduce((sum, canvas) => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let at = 0; at < data.length; at += 4) sum += data[at + 3] > 200 && blue(data.subarray(at, at + 3));
  return sum;
}, 0));
"""
DECODE = """
const [audio, done] = arguments;
fetch(audio.currentSrc || audio.src).then((answer) => answer.arrayBuffer())
  .then((bytes) => new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes))
  .then((buffer) => done(Array.from(buffer.getChannelData(0))), (error) => done(String(error)));
"""


def samples(page: Any, audio: Any) -> np.ndarray:
    """What an audio element would play, decoded by the browser."""
    decoded = page.execute_async_script(DECODE, audio)
    assert isinstance(decoded, list), decoded
    return np.array(decoded)


def column(table: Any, number: int) -> list[str]:
    return [cell.text for cell in table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({number + 1})")]


def test_every_chart_is_drawn_without_a_word_on_the_console(page: Any) -> None:
    assert page.execute_async_script(DRAW) == 0
    pixels = page.execute_script(PIXELS)  # of the first encoder's color, in each chart's canvas
    titles = [each.text for each in page.find_elements(By.CSS_SELECTOR, ".chart figcaption")]
    assert len(pixels) >= 10
    assert [title for title, count in zip(titles, pixels, strict=True) if count < 20] == []
    assert [line for line in page.get_log("browser") if line["level"] not in ("INFO", "DEBUG")] == []


def test_nothing_is_fetched_from_anywhere(page: Any, report: Path) -> None:
    fetched = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    policy = page.find_element(By.CSS_SELECTOR, "meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'")  # the browser itself refuses the rest


def test_the_slider_changes_what_is_played(page: Any, runs: Path) -> None:
    player = page.find_element(By.CSS_SELECTOR, "#traversal ~ .grid .player")
    slider = player.find_element(By.CSS_SELECTOR, "input[type=range]")
    audio = player.find_element(By.CSS_SELECTOR, ".deck audio")
    says = player.find_element(By.TAG_NAME, "output")
    run = player.find_element(By.TAG_NAME, "h4").text.partition(",")[0]
    folder = next((runs / run).glob("analysis/traversal-*"))
    heard = []
    page.execute_script("arguments[0].scrollIntoView()", slider)
    slider.send_keys(Keys.HOME)
    for number, value in enumerate(("-2.68", "-1.34", "+0.00", "+1.34", "+2.68")):
        if number:
            slider.send_keys(Keys.ARROW_RIGHT)
        assert says.text == value
        assert slider.get_attribute("aria-valuetext") == value
        written, rate = soundfile.read(folder / f"dimension-003-{number:02d}.wav", dtype="float32")
        heard.append(samples(page, audio))
        assert rate == 16_000
        np.testing.assert_allclose(heard[-1], written, atol=2 / 32768)
    assert min(np.abs(a - b).max() for a, b in pairwise(heard)) > 0.1


def test_another_dimension_is_another_slider(page: Any) -> None:
    player = page.find_element(By.CSS_SELECTOR, "#traversal ~ .grid .player")
    first, second = player.find_elements(By.CLASS_NAME, "track")
    assert (first.is_displayed(), second.is_displayed()) == (True, False)
    choice = player.find_element(By.TAG_NAME, "select")
    choice.find_elements(By.TAG_NAME, "option")[1].click()
    assert (first.is_displayed(), second.is_displayed()) == (False, True)
    heard = [samples(page, track.find_element(By.CSS_SELECTOR, ".deck audio")) for track in (first, second)]
    assert np.abs(heard[0] - heard[1]).max() > 0.1


def test_reconstructions_play_the_last_step(page: Any, runs: Path) -> None:
    row = page.find_element(By.CSS_SELECTOR, "table.audio tbody tr")
    assert row.find_element(By.TAG_NAME, "th").text == "one"
    folder = runs / "gim_thesis-0" / "decoders" / "0-mse" / "audio" / "one"
    for audio, name in zip(row.find_elements(By.TAG_NAME, "audio"), ("original", "step_00000100"), strict=True):
        written, _ = soundfile.read(folder / f"{name}.wav", dtype="float32")
        np.testing.assert_allclose(samples(page, audio), written, atol=2 / 32768)


def test_tables_sort_by_the_number_before_the_deviation(page: Any) -> None:
    table = page.find_element(By.CSS_SELECTOR, "#table-probes-0 table")
    headings = [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "thead th")]
    place = headings.index("module 0")
    cells = column(table, place)
    means = [float(text.split(" ")[0]) for text in cells]
    assert len(set(means)) > 1
    assert all("±" in text for text in cells)
    button = table.find_elements(By.CSS_SELECTOR, "thead button")[place]
    button.click()
    assert [float(text.split(" ")[0]) for text in column(table, place)] == sorted(means, reverse=True)
    button.click()
    assert [float(text.split(" ")[0]) for text in column(table, place)] == sorted(means)
    assert table.find_elements(By.TAG_NAME, "th")[place].get_attribute("aria-sort") == "ascending"


CELLS = [  # in ascending order
    ["-1.0", "9.5 ± 0.1", "10.2 ± 3.0 *", "100.0 (2)", "–"],
    ["other", "run-9", "run-10"],
    ["1.2e-05", "0.03 *", "0.5"],
]


def test_numbers_sort_by_value_and_names_as_people_count(page: Any) -> None:
    """What is missing stays last in both directions."""
    script = """
    const table = document.createElement('table');
    table.innerHTML = '<thead><tr><th></th></tr></thead><tbody></tbody>';
    for (const text of arguments[0]) table.tBodies[0].insertRow().insertCell().textContent = text;
    const read = () => [...table.tBodies[0].rows].map((row) => row.textContent);
    sort(table.tHead.rows[0].cells[0], 0); const up = read();
    sort(table.tHead.rows[0].cells[0], 0); return [up, read()];"""
    for ascending in CELLS:
        up, down = page.execute_script(script, ascending[1:] + ascending[:1])
        assert up == ascending
        known = [cell for cell in ascending if cell != "–"]
        assert down == [*reversed(known), *(cell for cell in ascending if cell == "–")]


def test_nothing_sticks_out_and_text_is_readable(page: Any) -> None:
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for width, scheme in ((380, "light"), (380, "dark"), (1400, "dark"), (1400, "light")):
        look(page, width, scheme)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, (width, scheme)
        for selector in ("p.note", "td", ".missing strong", "nav a"):
            assert contrast(page, selector) >= 4.5, (selector, scheme)


def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with the page."""
    script = """return [getComputedStyle(document.querySelector(arguments[0])).color,
                       getComputedStyle(document.documentElement).backgroundColor]"""
    levels = []
    for color in page.execute_script(script, selector):
        parts = np.array([float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


def test_an_encoder_is_hidden_in_all_charts(page: Any) -> None:
    assert page.execute_async_script(DRAW) == 0
    visible = (
        "return drawn.map((plot) => plot.renderers.filter((each) => each.name === 'encoder0' && each.visible).length)"
    )
    before = page.execute_script(visible)
    assert max(before) > 0
    page.find_element(By.CSS_SELECTOR, ".legend li[data-encoder=encoder0] button").click()
    assert max(page.execute_script(visible)) == 0
    buttons = page.find_elements(By.CSS_SELECTOR, ".legend li[data-encoder=encoder0] button")
    assert {button.get_attribute("aria-pressed") for button in buttons} == {"false"}
    buttons[0].click()
    assert page.execute_script(visible) == before


def test_printing_takes_the_still_charts(page: Any) -> None:
    assert page.execute_async_script(DRAW) == 0
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.find_element(By.CSS_SELECTOR, ".chart .static").is_displayed()
        assert not page.find_element(By.CSS_SELECTOR, ".chart .live").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_audio_elements_play(page: Any) -> None:
    """The browser's own player takes the data, not only the decoder of the tests."""
    audio = page.find_element(By.CSS_SELECTOR, ".deck audio")
    page.execute_script("arguments[0].load()", audio)
    WebDriverWait(page, 20).until(lambda _: page.execute_script("return arguments[0].readyState >= 2", audio))
    assert page.execute_script("return arguments[0].duration", audio) == pytest.approx(4096 / 16_000, abs=0.01)
    assert page.execute_script("return arguments[0].error", audio) is None


def test_the_encoded_sound_is_the_file(page: Any, runs: Path) -> None:
    """FLAC as soundfile reads it, bit by bit."""
    uri = page.execute_script("return document.querySelector('table.audio audio').src")
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), dtype="int16")
    written, _ = soundfile.read(runs / "gim_thesis-0/decoders/0-mse/audio/one/original.wav", dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(decoded, written)


def test_without_javascript_curves_tables_and_sounds_are_there(page: Any, report: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.get((report / "report.html").as_uri())
    charts = page.find_elements(By.CSS_SELECTOR, ".chart .static svg")
    assert len(charts) >= 10
    assert all(chart.is_displayed() and chart.size["height"] > 100 for chart in charts)
    assert page.find_elements(By.CSS_SELECTOR, ".live canvas") == []
    assert len([audio for audio in page.find_elements(By.CSS_SELECTOR, ".sounds audio") if audio.is_displayed()]) >= 10
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
