"""Drives the demo in a headless Chromium, as a person would.

python tests/demo_browser.py MODEL CLIP SCREENSHOT [VQ_WAV2VEC] keeps the picture of the README: `make screenshot`.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_MS = 180_000


def chromium() -> str | None:
    """The browser of this machine, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Seen:
    """What a person saw: the `text`, the `words` with the time they begin, and where the player stood after a click
    on the last of them."""

    text: str
    words: list[tuple[str, float]]
    player_seconds: float


@contextmanager
def served(**models: str) -> Iterator[str]:
    """The address of a demo with these models, while it runs."""
    from hf_wav2vec_family.demo.app import build, launch

    page = build(**models)
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield url
    finally:
        page.close()


@contextmanager
def browsed(url: str, said: Path | None = None):
    """A page of the browser; its microphone hears the WAV file `said`, again and again."""
    from playwright.sync_api import sync_playwright

    microphone = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    arguments = [] if said is None else [*microphone, f"--use-file-for-fake-audio-capture={said}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *arguments])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        yield page
        browser.close()


def transcribe(page, clip: Path, screenshot: Path) -> Seen:
    """Uploads a file, waits for its words, takes a picture, clicks the last word."""
    page.locator("input[type=file]").first.set_input_files(str(clip))
    page.locator("audio, .waveform-container").first.wait_for(state="attached")
    page.get_by_role("button", name="Transcribe", exact=True).click()
    words = page.locator("#transcript .transcript button")
    words.first.wait_for()
    heard = [
        (re.sub(r"\s*[\d.]+$", "", one.inner_text()), float(one.get_attribute("data-begin"))) for one in words.all()
    ]
    page.wait_for_timeout(500)  # until what moves stands still
    screenshot.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(screenshot))
    words.last.click()
    player = page.locator("#transcript audio")
    page.wait_for_function("() => document.querySelector('#transcript audio').currentTime > 0")
    return Seen(page.locator("#text textarea").input_value(), heard, player.evaluate("p => p.currentTime"))


def codes(page, clip: Path, screenshot: Path):
    """Uploads a file in the second tab and takes a picture of its codes."""
    page.get_by_role("tab", name="Codes").click()
    page.locator("input[type=file]").last.set_input_files(str(clip))
    page.get_by_role("button", name="Show its codes").click()
    page.locator("#codes img").wait_for()
    page.screenshot(path=str(screenshot))


def speak(page, screenshot: Path) -> str:
    """Records in the third tab until there is text, takes a picture, stops; the text."""
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#window img").wait_for()
    page.wait_for_function("() => document.querySelector('#heard textarea').value !== ''")
    page.screenshot(path=str(screenshot))
    page.get_by_role("button", name="Stop", exact=True).click()
    return page.locator("#heard textarea").input_value()


if __name__ == "__main__":
    model, clip, screenshot, *quantizer = sys.argv[1:]
    with served(model=model, codes="".join(quantizer)) as url, browsed(url) as page:
        print(transcribe(page, Path(clip), Path(screenshot)))
        if quantizer:
            codes(page, Path(clip), Path(screenshot).with_name("codes.png"))
