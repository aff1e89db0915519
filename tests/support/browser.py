"""A headless Chromium that looks at the pages of a server, as their readers do. It needs no network beyond loopback."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from support.requirements import needs
from support.waiting import PATIENCE, until

AXE = Path(__file__).parents[1] / "vendor" / "axe-core" / "axe.min.js"


class Browser:
    """A window of Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        driver.set_script_timeout(2 * PATIENCE)
        driver.set_page_load_timeout(2 * PATIENCE)

    # -- how it looks

    def size(self, width: int, height: int = 900) -> None:
        """Show pages in this size, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Prefer "light" or "dark" colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, *, whole: bool = False) -> bytes:
        """Return what is shown as a PNG file: the whole page, or what is in the window."""
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"format": "png", "captureBeyondViewport": whole, **(self._clip() if whole else {})},
        )
        return base64.b64decode(shot["data"])

    def _clip(self) -> dict[str, Any]:
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    # -- what it does

    def open(self, url: str) -> None:
        """Open a page, and wait until its script has shown what it fetches."""
        self.driver.get(url)
        self.wait_for("document.body.dataset.loaded === 'true'", url, 2 * PATIENCE)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page, and return its result."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, expression: str, what: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true in the page."""
        until(lambda: self.run(f"return Boolean({expression})"), lambda: f"{what}: {self.text()[:2000]}", seconds)

    def text(self) -> str:
        """Return the text of the page, as it is shown."""
        text: str = self.run("return document.body.innerText")
        return text

    def find(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    # -- what went wrong

    def complaints(self) -> list[str]:
        """Return what the console says at the levels of errors and warnings since the last call."""
        return [f"{one['level']}: {one['message']}" for one in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Return the hosts and ports to which requests were made since the last call."""
        events = [json.loads(one["message"])["message"] for one in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "about:"))}

    def faults(self) -> list[str]:
        """Return the serious and critical faults that axe finds in the page, one line each."""
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})  # the page allows no script
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
        )
        return [
            f"{one['impact']}: {one['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


@contextmanager
def browser(*options: str) -> Iterator[Browser]:
    """Run a Chromium with a profile of its own; skip the test, or fail it in CI, if it is not installed."""
    needs("chromium", "chromedriver")
    with tempfile.TemporaryDirectory() as profile:
        wishes = Options()
        wishes.binary_location = "/usr/bin/chromium"
        for option in _options(profile, options):
            wishes.add_argument(option)
        wishes.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
        service = Service("/usr/bin/chromedriver", env={**os.environ, "HOME": profile})
        driver = webdriver.Chrome(options=wishes, service=service)
        try:
            yield Browser(driver)
        finally:
            driver.quit()


def _options(profile: str, others: Sequence[str]) -> list[str]:
    return [
        "--headless=new",
        "--no-sandbox",  # its sandbox needs rights that tests do not have; it sees pages of this project only
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-sync",
        "--no-first-run",
        "--no-default-browser-check",
        "--hide-scrollbars",
        f"--user-data-dir={profile}/chromium",
        *others,
    ]
