"""A headless Chromium for the tests of pages, driven by selenium; nothing is downloaded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = 30.0  # seconds, on a machine with other work


class Browser:
    """One window, with what a reader does in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """A page, wholly drawn."""
        self.told()  # of the page before
        self.resize(width, height)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(path.as_uri())
        self.drawn(scheme)

    def drawn(self, scheme: str) -> None:
        """Waits until all charts are there in these colours."""
        self.wait(lambda: self.js("return document.documentElement.dataset.drawn") == scheme)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def js(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def wait(self, said: Callable[[], Any]) -> Any:
        """What it gives, once that is something."""
        end = time.monotonic() + PATIENCE
        while not (found := said()):
            assert time.monotonic() < end, self.told()
            time.sleep(0.05)
        return found

    def told(self) -> list[str]:
        """What stands in the console."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def find(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a table, as a reader copies them."""
        code = """const table = document.getElementById(arguments[0] + "-table");
        const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
        return [...table.tBodies[0].rows].map((row) =>
          Object.fromEntries(heads.map((head, i) => [head, row.cells[i].textContent])));"""
        return self.js(code, name)

    def picture(self, path: Path) -> Path:
        """The whole page."""
        width, height = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        self.resize(width, height)
        self.wait(lambda: self.js("return innerHeight") == height)
        self.driver.save_screenshot(str(path))
        return path


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if BINARY is None or DRIVER is None:
        pytest.skip("there is no Chromium here: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
