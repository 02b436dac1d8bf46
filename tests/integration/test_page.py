"""The page at /, in a headless Chromium: it streams, tells tokens apart, compares, stops, and says what is wrong.

SPECFLEET_SCREENSHOT=FOLDER keeps what it looked like.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from specfleet import Client
from support.daemons import Daemon, running, start_drafter, start_verifier, wait_until_empty

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PROMPT = "Once upon a time, there was a little fox who lived"
SECONDS = 60_000.0


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Daemon, Daemon]]:
    with ExitStack() as stack:
        verifier = stack.enter_context(running(start_verifier("--speculation", "fixed:4")))
        yield verifier, stack.enter_context(running(start_drafter(verifier)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, daemons: tuple[Daemon, Daemon]) -> Iterator[Any]:
    """The page, open; in the end nothing was said on the console, and nothing asked for elsewhere."""
    where = f"http://{daemons[1].said('http')}/"
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(SECONDS)
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith((where, "data:")) else complaints.append(one.url))
    page.goto(where)
    yield page
    page.close()
    # A refusal is an error to the browser, too.
    assert [] == [one for one in complaints if "400 (Bad Request)" not in one]


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("SPECFLEET_SCREENSHOT")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def number(page: Any, name: str) -> float:
    return float(page.locator(f"#{name}").inner_text().split()[0].rstrip("×"))


def test_it_streams_and_compares(page: Any, daemons: tuple[Daemon, Daemon]) -> None:
    """Both texts are the SDK's, every token has its kind, and the figures fit together."""
    with Client(daemons[1].address) as client:
        expected = client.generate(PROMPT, max_tokens=40, temperature=0.0)
    sync_api.expect(page.locator("#where")).to_contain_text("tiny-target")
    page.get_by_label("Most tokens").fill("40")
    page.get_by_role("button", name="Generate").click()
    sync_api.expect(page.locator("#same")).to_contain_text("The same text")
    for name in ("with", "without"):
        assert PROMPT + expected.text == page.locator(f"#{name}").text_content()
    kinds = {name: page.locator(f"#with .{name}").count() for name in ("accepted", "recovered", "bonus", "target")}
    assert kinds == {name: int(page.locator(f"#n-{name}").inner_text()) for name in kinds}
    # What drafters learn changes how far they draft the next time, so counts are held against each other.
    assert 40 == sum(kinds.values()) and kinds["accepted"] > 0
    said = re.search(r"(\d+) of (\d+)", page.locator("#status").inner_text())
    assert said is not None and kinds["accepted"] == int(said[1])
    assert f"{round(100 * int(said[1]) / int(said[2]))} %" == page.locator("#acceptance").inner_text()
    assert number(page, "ratio") == pytest.approx(number(page, "speed") / number(page, "alone"), rel=0.05)
    assert page.locator("#steps .kept").count() > 5
    shoot(page, "light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "dark")


def test_it_can_be_stopped(page: Any, daemons: tuple[Daemon, Daemon]) -> None:
    """Stop ends the request, and frees what it held."""
    page.get_by_label("Most tokens").fill("1500")
    page.get_by_label("Prompt").press("Control+Enter")
    sync_api.expect(page.locator("#n-accepted")).not_to_have_text("0")
    page.get_by_role("button", name="Stop").click()
    sync_api.expect(page.locator("#status")).to_have_text("Stopped.")
    wait_until_empty(daemons[0])


def test_it_says_what_is_wrong(page: Any) -> None:
    """A refusal is shown where screen readers announce it, and the next try works."""
    page.get_by_label("Prompt").fill("word " * 4000)
    page.get_by_role("button", name="Generate").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("2048")
    page.get_by_label("Prompt").fill("<b>not bold</b> & so on")
    page.get_by_label("Most tokens").fill("4")
    page.get_by_role("button", name="Generate").click()
    sync_api.expect(page.locator("#same")).to_contain_text("The same text")
    assert "" == page.locator("#problem").text_content()
    assert 0 == page.locator("b").count()


def test_it_is_accessible(page: Any) -> None:
    """Every control has a name, text stands out from its ground in both schemes, and a narrow window needs no sideways
    scrolling."""
    for control in page.locator("input, textarea, button").all():
        assert control.evaluate("e => (e.labels && e.labels.length) || e.textContent.trim() !== ''"), control
    contrast = """([ink, ground]) => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => {
        const [r, g, b] = style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((h) => {
          const v = parseInt(h, 16) / 255;
          return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }"""
    pairs = [("--ink", one) for one in ("--ground", "--card", "--accepted", "--bonus", "--recovered")]
    pairs += [
        ("--faint", "--card"),
        ("--faint", "--ground"),
        ("--on-act", "--act"),
        ("--act", "--card"),
        ("--bad", "--card"),
    ]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ratios = {pair: page.evaluate(contrast, list(pair)) for pair in pairs}
        assert min(ratios.values()) >= 4.5, ratios
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot(page, "narrow")
