"""The page at `/` in headless Chromium: a drop, a question, the stages, the answer, a cancel."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)
DROP = """
const [name, data] = arguments;
const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, {type: "image/png"}));
document.getElementById("drop").dispatchEvent(
  new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""
# WCAG's contrast of every visible text against the nearest background that is painted.
CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.tagName === "SCRIPT" || node.disabled) continue;
  let back = node;
  while (back && (rgb(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
  const a = light(rgb(getComputedStyle(node).color));
  const b = light(back ? rgb(getComputedStyle(back).backgroundColor) : [255, 255, 255]);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${node.tagName}.${node.className} ${node.textContent.slice(0, 30)}: ${ratio}`);
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--window-size=1500,1150", "--force-prefers-reduced-motion"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(served, browser) -> Iterator[webdriver.Chrome]:
    """The page, loaded, its model known; afterwards it must have logged no error."""
    browser.get_log("browser")
    browser.get(served.url)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#strategy option"))
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def until(browser: webdriver.Chrome, condition: Any, seconds: float = 60) -> Any:
    return WebDriverWait(browser, seconds, poll_frequency=0.02).until(lambda _: condition())


def shoot(browser: webdriver.Chrome, name: str) -> None:
    """Keep a screenshot where $STAGEBEAM_SCREENSHOTS says."""
    folder = os.environ.get("STAGEBEAM_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def write(browser: webdriver.Chrome, name: str, text: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(text)


def status(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "status").text


def open_options(browser: webdriver.Chrome) -> None:
    browser.find_element(By.TAG_NAME, "summary").click()


def test_a_question_from_drop_to_answer(page, served, scene_path) -> None:
    page.execute_script(DROP, "scene.png", base64.b64encode(scene_path.read_bytes()).decode())
    until(page, lambda: page.find_element(By.ID, "preview").is_displayed())
    open_options(page)
    write(page, "temperature", "1.3")
    write(page, "seed", "12345678901234567")
    write(page, "beam", "4")
    write(page, "question", served.question + Keys.ENTER)
    until(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".candidate")) >= 8)
    shoot(page, "running")
    until(page, lambda: page.find_element(By.ID, "figures").is_displayed())
    shoot(page, "answered")
    stages = page.find_elements(By.CSS_SELECTOR, ".stage")
    assert [s.get_attribute("aria-label") for s in stages] == [
        *("summary", "caption", "reasoning", "conclusion")
    ]
    for stage in stages:
        assert len(stage.find_elements(By.CSS_SELECTOR, ".candidate")) == 4
        assert len(stage.find_elements(By.CSS_SELECTOR, ".candidate.won")) == 1
        assert len(stage.find_elements(By.CSS_SELECTOR, ".candidate.lost")) == 3
        assert len(stage.find_elements(By.CSS_SELECTOR, ".match")) == 3
        assert not stage.find_elements(By.CSS_SELECTOR, ".live")
    trunk = page.find_elements(By.CSS_SELECTOR, "#trunk-list li")
    assert len(trunk) == 4
    words = page.find_element(By.ID, "words").text
    assert words
    assert trunk[-1].text.endswith(words)
    assert status(page).startswith("Answered in")
    costs = page.find_element(By.ID, "figures").text
    assert "seed 12345678901234567" in costs  # 64 bits, whole
    assert "judge calls" in costs
    assert page.execute_script(CONTRAST) == []


def test_cancel_in_the_middle(page, served, slow_engine) -> None:
    open_options(page)
    write(page, "question", served.question)
    page.find_element(By.ID, "ask").click()
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, ".candidate.live"))
    shoot(page, "before-cancel")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    until(page, lambda: status(page).startswith("Cancelled"))
    shoot(page, "cancelled")
    assert not page.find_elements(By.CSS_SELECTOR, ".live")
    served.assert_idle()
    assert page.find_element(By.ID, "ask").is_enabled()


@pytest.mark.parametrize("strategy", ["greedy", "best_of_n", "sentence_beam"])
def test_other_searches(page, served, strategy: str) -> None:
    page.find_element(By.CSS_SELECTOR, f"#strategy option[value={strategy}]").click()
    if strategy != "greedy":
        write(page, "beam", "2")
    write(page, "question", served.question)
    page.find_element(By.ID, "ask").click()
    until(page, lambda: page.find_element(By.ID, "figures").is_displayed())
    shoot(page, strategy)
    assert page.find_element(By.ID, "words").text
    assert page.find_elements(By.CSS_SELECTOR, "#trunk-list li")


def test_the_keyboard_reaches_everything(page, served) -> None:
    open_options(page)
    page.find_element(By.TAG_NAME, "h1").click()
    reached = []
    for _ in range(16):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.get_attribute("id"))
    for name in ("file", "question", "strategy", "beam", "ask"):
        assert name in reached, reached
    for field in page.find_elements(By.CSS_SELECTOR, "input, select, textarea, button"):
        if field.is_displayed():
            assert field.accessible_name, field.get_attribute("outerHTML")


def test_faults_are_shown(page) -> None:
    open_options(page)
    write(page, "beam", "64")
    write(page, "tokens", "100000")
    page.execute_script("document.getElementById('question').value = 'x '.repeat(3000)")
    page.find_element(By.ID, "ask").click()
    until(page, lambda: "bad" in page.find_element(By.ID, "status").get_attribute("class"))
    assert "context" in status(page)
    page.get_log("browser")  # the 400 itself


def test_a_dark_page_has_contrast(page, served) -> None:
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    try:
        write(page, "beam", "3")
        write(page, "question", served.question + Keys.ENTER)
        until(page, lambda: page.find_element(By.ID, "figures").is_displayed())
        time.sleep(0.5)  # colours fade in
        shoot(page, "dark")
        assert page.execute_script(CONTRAST) == []
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_narrow_page_does_not_scroll_sideways(page, served) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        write(page, "beam", "2")
        write(page, "question", served.question + Keys.ENTER)
        until(page, lambda: page.find_element(By.ID, "figures").is_displayed())
        shoot(page, "narrow")
        width = page.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
