"""The page of `imagen demo` in a real browser: images, editing, mistakes, and who is answered."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from imagen_jax.cascade import Cascade, read_image, read_mask, read_record, repeat

pytest.importorskip("nicegui", reason="the page needs NiceGUI: the extra page")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser is driven by Playwright"
)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run", "--disable-quic"]  # fmt: skip
PROMPT = "a red apple"
PATIENCE = 600_000
"""Milliseconds; the process that samples steps back on a busy machine."""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_cascade(tmp_path_factory.mktemp("page") / "cascade")


@pytest.fixture(scope="module")
def server(workdir: Path, interruptible: None) -> Iterator[tuple[str, int]]:
    """Address of the page and number of its process."""
    command = [sys.executable, "-m", "imagen_jax.main", "demo", "--port", "0", "--workdir"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(
        [*command, str(workdir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", said)
    assert address, said + process.communicate()[1]
    yield address[0], process.pid
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=FLAGS, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: playwright.Browser, server: tuple[str, int]) -> Iterator[playwright.Page]:
    """A new tab, that saw no error and asked nobody but the server for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    playwright.expect.set_options(timeout=PATIENCE)
    tab = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(server[0])
    tab.get_by_label("Images", exact=True).fill("2")
    for stage in ("base", "sr"):
        tab.get_by_label(f"Steps, {stage}").fill("2")
    yield tab
    assert not errors
    assert all(url.startswith((server[0], "data:", "blob:")) for url in asked), asked
    context.close()


def mode(page: playwright.Page, name: str) -> None:
    page.get_by_label("Mode").get_by_role("button", name=name).click()


def make(page: playwright.Page, prompt: str = PROMPT) -> None:
    """Asks for images and waits until they are there."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    before = page.locator(".tile").element_handles()
    page.get_by_role("button", name="Make images").click()
    if before:
        before[0].wait_for_element_state("hidden")
    page.get_by_role("status").filter(has_text="done in").wait_for()


def upload(page: playwright.Page, content: bytes, name: str = "photo.png") -> None:
    # The page takes no file while it waits for the answer to the one before.
    playwright.expect(page.locator(".q-uploader__spinner")).to_have_count(0)
    page.locator("input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def slide(page: playwright.Page, name: str, key: str, times: int) -> None:
    """Presses a key on a slider."""
    for _ in range(times):
        page.get_by_role("slider", name=name).locator("[tabindex]").press(key)


def brush(page: playwright.Page) -> None:
    """Paints over a part of the image on the canvas, from row 2 to row 6 of 8 in column 2."""
    canvas = page.locator(".canvas img")
    playwright.expect(canvas).to_have_js_property("complete", True)
    box = canvas.bounding_box()
    assert box is not None
    pixel = box["width"] / 8
    page.mouse.move(box["x"] + 2 * pixel, box["y"] + 2 * pixel)
    page.mouse.down()
    page.mouse.move(box["x"] + 2 * pixel, box["y"] + 6 * pixel, steps=4)
    page.mouse.up()
    page.locator(".canvas polyline:not(.draft)").wait_for(state="attached")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def downloaded(page: playwright.Page, button: str, directory: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    path = directory / download.value.suggested_filename
    download.value.save_as(path)
    return path


def expect_sizes(images: playwright.Locator, *sizes: int) -> None:
    """Waits until the browser shows as many square images, of these sides."""
    wanted, found = [[size, size] for size in sizes], None
    until = time.monotonic() + PATIENCE / 1000
    while found != wanted:
        assert time.monotonic() < until, f"{found}, not {wanted}"
        found = images.evaluate_all("all => all.map(x => [x.naturalWidth, x.naturalHeight])")


PHOTO = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_images_their_stages_and_their_files(
    page: playwright.Page, workdir: Path, tmp_path: Path
) -> None:
    page.get_by_label("Seed", exact=True).fill("7")
    make(page)
    expect_sizes(page.locator(".tile"), tiny.SR, tiny.SR)
    page.get_by_alt_text("image 2, seed 8").click()
    expect_sizes(page.locator(".stage"), tiny.BASE, tiny.SR)
    film = page.get_by_text("stage sr, step 2 of 2")
    film.last.wait_for()
    slide(page, "Denoising step", "ArrowLeft", 3)
    page.get_by_text("stage base, step 1 of 2").wait_for()
    expect_sizes(page.locator(".large"), tiny.BASE)

    file = downloaded(page, "Download PNG", tmp_path)
    assert file.name == "imagen-8.png"
    playwright.expect(page.get_by_text("imagen sample --from imagen-8.png")).to_be_visible()
    record = read_record(file)
    assert (record["prompt"], record["seed"]) == (PROMPT, 8)
    cascade = Cascade.load(workdir)
    again = cascade.run(repeat(cascade, record), show_progress=False)
    difference = again.images[0].astype(int) - read_image(file)
    assert np.abs(difference).max() <= 1  # of another batch size

    page.get_by_role("button", name="Use its settings").click()
    playwright.expect(page.get_by_label("Seed", exact=True)).to_have_value("8")
    playwright.expect(page.get_by_label("Images", exact=True)).to_have_value("1")
    page.reload()  # what the tab has made is still there
    page.get_by_role("status").filter(has_text="done in").wait_for()
    playwright.expect(page.locator(".tile")).to_have_count(2)


def test_an_uploaded_image_changed_painted_and_enlarged(
    page: playwright.Page, workdir: Path, tmp_path: Path
) -> None:
    mode(page, "Change")
    upload(page, png(PHOTO))
    page.get_by_text("photo.png, 8 x 8").wait_for()
    make(page)
    record = read_record(downloaded(page, "Download PNG", tmp_path))
    strength = page.get_by_role("slider", name="Strength").get_attribute("aria-valuenow")
    assert record["stages"]["base"]["edit"]["strength"] == float(strength or "nan")

    mode(page, "Paint a part")
    brush(page)
    make(page)
    painted = downloaded(page, "Download PNG", tmp_path)
    image = read_image(downloaded(page, "Download its image", tmp_path))
    mask = read_mask(downloaded(page, "Download its mask", tmp_path))
    np.testing.assert_array_equal(image, PHOTO)
    assert mask[2:6, 1:3].all()
    assert not mask[:, 4:].any()
    np.testing.assert_array_equal(read_image(painted)[~mask], PHOTO[~mask])
    cascade = Cascade.load(workdir)
    request = repeat(cascade, read_record(painted), image, mask)
    again = cascade.run(request, show_progress=False)
    assert np.abs(again.images[0].astype(int) - read_image(painted)).max() <= 1

    mode(page, "Enlarge")
    make(page)
    expect_sizes(page.locator(".stage"), tiny.SR)
    assert list(read_record(downloaded(page, "Download PNG", tmp_path))["stages"]) == ["sr"]


def test_mistakes_are_told_and_the_server_lives_on(page: playwright.Page) -> None:
    alert = page.get_by_role("alert")
    button = page.get_by_role("button", name="Make images")
    button.click()
    alert.filter(has_text="say in the prompt what the image shows").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a" * 1001)
    page.get_by_text("1,001 of 1,000 characters").wait_for()
    button.click()
    alert.filter(has_text="the prompt has 1,001 characters; at most 1,000 are taken").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a " * 40)
    button.click()
    alert.filter(has_text="trained with at most 32").wait_for()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    for number in ("17", "1.5", ""):
        page.get_by_label("Images", exact=True).fill(number)
        button.click()
        alert.filter(has_text="the number of images").filter(
            has_text=number if number else "got None"
        ).wait_for()
    page.get_by_label("Images", exact=True).fill("2")

    mode(page, "Change")
    button.click()
    alert.filter(has_text="choose an image to start from").wait_for()
    upload(page, b"no image at all", "notes.txt")
    alert.filter(has_text="notes.txt: the given image: image is text").wait_for()
    upload(page, png(PHOTO)[:-30], "cut.png")
    alert.filter(has_text="cut.png: the given image: damaged image").wait_for()
    upload(page, bytes(11 * 2**20), "large.png")
    alert.filter(has_text="the file is larger than 10 MB").wait_for()
    mode(page, "Create")
    make(page)
    playwright.expect(alert).to_be_hidden()


def test_a_running_job_can_be_stopped(page: playwright.Page) -> None:
    mode(page, "Paint a part")
    upload(page, png(PHOTO))
    page.get_by_text("photo.png, 8 x 8").wait_for()
    brush(page)
    slide(page, "Passes", "ArrowRight", 3)  # 5,000 steps in all
    for stage in ("base", "sr"):
        page.get_by_label(f"Steps, {stage}").fill("250")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Make images").click()
    page.get_by_text("stage base, step").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("status").filter(has_text="stopped").wait_for()


def test_it_listens_on_loopback_alone(server: tuple[str, int]) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs Linux's /proc")
    address, pid = server
    open_files = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it is closed meanwhile
            open_files.append(os.readlink(link))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = line.split()
            inode = line.split()[9]
            if state == "0A" and f"socket:[{inode}]" in open_files:
                listening.append(local)
    port = int(address.rstrip("/").rpartition(":")[2])
    assert listening == [f"0100007F:{port:04X}"]
