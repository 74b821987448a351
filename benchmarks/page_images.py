"""The images of docs/page.md: the page of `imagen demo` in a browser, driven as a user would.

    python -m benchmarks.page_images --output docs/page

Starts the page on the demo cascade and drives the Chromium of the machine. What is made depends on
the seeds alone; how far it is in the first image, and the seconds that it took, on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROMPT = "a drawing of a rocket above a sunflower on a black background"
PAINTED = "a drawing of a rocket above a red apple on a black background"
CHOSEN = "image 3, seed 2"
"""The one of PROMPT that is painted over."""
UNDER_WAY = re.compile(r"stage sr, step ([3-9]|\d\d) of")
"""The page's words when the first screenshot is taken: a later step too, should one be missed."""
WHERE = {"left": 0.36, "right": 0.64, "top": 0.58, "bottom": 0.9}
"""Of the brush, as shares of the image's sides: over the sunflower."""


@contextlib.contextmanager
def page_server() -> Iterator[str]:
    """Address of a page that runs meanwhile.

    Raises:
      RuntimeError: it does not start.
    """
    command = [sys.executable, "-m", "imagen_jax.main", "demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        if not address:
            raise RuntimeError(f"imagen demo said no address, but {said!r}")
        yield address[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def ask(page: Page, prompt: str, images: int) -> None:
    """Fills the form, and presses its button."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Images", exact=True).fill(str(images))
    page.get_by_label("Seed", exact=True).fill("0")
    page.get_by_role("button", name="Make images").click()


def brush(page: Page) -> None:
    """Paints over WHERE in lines from its top to its bottom."""
    canvas = page.locator(".canvas img")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    top, bottom = (box["y"] + WHERE[side] * box["height"] for side in ("top", "bottom"))
    left, right = (box["x"] + WHERE[side] * box["width"] for side in ("left", "right"))
    page.mouse.move(left, top)
    page.mouse.down()
    for x in (left + (right - left) * line / 4 for line in range(5)):
        page.mouse.move(x, top, steps=4)
        page.mouse.move(x, bottom, steps=8)
        page.mouse.move(x, top, steps=8)
    page.mouse.up()
    page.locator(".canvas polyline").wait_for(state="attached")


def take(page: Page, output: Path) -> None:
    """Makes eight images, repaints a part of one, and takes an image of either."""
    ask(page, PROMPT, 8)
    page.get_by_role("status").filter(has_text=UNDER_WAY).wait_for()
    page.screenshot(path=output / "making.png", full_page=True)
    page.get_by_role("status").filter(has_text="done in").wait_for()

    page.get_by_alt_text(CHOSEN).click()
    page.locator(".detail").get_by_role("button", name="Paint a part").click()
    brush(page)
    ask(page, PAINTED, 4)
    page.locator(".title").filter(has_text=PAINTED).wait_for()
    page.get_by_role("status").filter(has_text="done in").wait_for()
    page.screenshot(path=output / "painting.png", full_page=True)


def main() -> None:
    """Takes both images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory of the images")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser here; one of {', '.join(BROWSERS)} is driven")
    with page_server() as address, sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(300_000)
        page.goto(address)
        take(page, output)
        chromium.close()


if __name__ == "__main__":
    main()
