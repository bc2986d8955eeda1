"""A real browser: Debian's Chromium, headless, driven by its chromedriver."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Folder for screenshots that a person looks at: `SCREENSHOTS=folder scripts/test tests/report`."""


class Browser:
    """Opens pages and tells what happened in them."""

    def __init__(self, driver):
        self.driver = driver
        self.run = driver.execute_script

    def open(self, page: Path, width: int = 1200, dark: bool = False) -> None:
        """Opens a page and waits until its pictures are drawn; fails on errors and requests."""
        send = self.driver.execute_cdp_cmd
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        send("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(page.resolve().as_uri())
        self.wait("return window.rendered && window.rendered.done")
        assert self.errors() == []
        assert self.requests() == [page.resolve().as_uri()]

    def wait(self, condition: str) -> None:
        """Waits until a script returns something true."""
        end = time.monotonic() + 30
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.driver.get_log("browser"))
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """What the console has said."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was loaded since, except what the page itself holds."""
        events = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]

    def pixels(self, figure: str) -> str:
        """A picture's pixels as text: two pictures look alike if their texts are equal."""
        return self.run(f"return document.querySelector('[data-figure=\"{figure}\"] canvas').toDataURL()")

    def wait_until_changed(self, figure: str, before: str, back: bool = False) -> None:
        """Waits until a picture looks other than before, or as before again."""
        found = f"document.querySelector('[data-figure=\"{figure}\"] canvas')?.toDataURL()"
        self.wait(f"return {found} {'===' if back else '!=='} {json.dumps(before)}")

    def drag(self, figure: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the mouse over a picture, between two places given as shares of its width and height."""
        place = f"document.querySelector('[data-figure=\"{figure}\"] canvas')"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        box = self.run(f"const b = {place}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]")
        middle = ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
        kinds = ("mouseMoved", "mousePressed", "mouseMoved", "mouseMoved", "mouseReleased")
        for kind, (x, y) in zip(kinds, (begin, begin, middle, end, end), strict=True):
            event = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1}
            event |= {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def screenshot(self, name: str) -> None:
        """Writes the whole page as a picture to SCREENSHOTS, if that is set."""
        if SCREENSHOTS:
            import base64

            size = self.run("return [innerWidth, document.documentElement.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
            options = {"captureBeyondViewport": True, "clip": clip}
            found = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            (Path(SCREENSHOTS) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a network, or a skip where there is none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
