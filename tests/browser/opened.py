"""A headless Chromium with no network, and what a page showed in it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT = 10.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1400,900",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_ALLOWED = ("file:", "data:", "blob:", "about:")


def missing() -> str:
    """Why there is no browser to test in; "" where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    try:
        import selenium  # noqa: F401
    except ImportError:
        absent.append("selenium (pip install -e '.[test]')")
    return f"not found: {', '.join(absent)}" if absent else ""


@contextmanager
def browser(downloads: Path) -> Iterator[Any]:
    """A browser that saves files into this folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in _FLAGS:
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(shutil.which("chromedriver"), log_output=os.devnull)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        given = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", given)
        yield driver
    finally:
        driver.quit()


class Opened:
    """A page in the browser: what it shows, and what a person can do with it."""

    def __init__(self, driver: Any, path: Path, address: str = "") -> None:
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        self.driver = driver
        driver.get(path.as_uri() + address)
        self.wait(lambda: self.js("return performance.getEntriesByName('drawn').length"))

    def js(self, script: str, *given: Any) -> Any:
        """What a script returns in the page."""
        return self.driver.execute_script(script, *given)

    def wait(self, happened: Callable[[], Any]) -> Any:
        """What it is, once it is anything."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            found = happened()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError("waited in vain")

    def click(self, selector: str, **event: Any) -> None:
        """A click on the first element of a selector."""
        self.js(
            "document.querySelector(arguments[0]).dispatchEvent("
            "new MouseEvent('click', {bubbles: true, cancelable: true, ...arguments[1]}))",
            selector,
            event,
        )

    def press(self, key: str) -> None:
        """A key, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def slide(self, name: str, percent: float) -> None:
        """A slider moved and let go."""
        self.js(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "for (const e of ['input', 'change']) s.dispatchEvent(new Event(e, {bubbles: true}))",
            name,
            percent,
        )

    def units(self) -> set[str]:
        """The keys of what is drawn."""
        return set(
            self.js("return [...document.querySelectorAll('#nodes > g')].map(g => g.dataset.unit)")
        )

    def nodes(self) -> set[int]:
        """The numbers of the nodes drawn by themselves."""
        return {int(key.split()[1]) for key in self.units() if key.startswith("node ")}

    def select(self, node: int) -> None:
        """A click on a node."""
        self.click(f'[data-unit="node {node}"]')

    def bars(self, name: str) -> dict[str, float]:
        """The bars of a section of the panel: what is written beside them, and the amount."""
        rows = self.js(
            "return [...document.querySelectorAll(`.${arguments[0]} tr[data-amount]`)]"
            ".map(r => [r.querySelector('th').textContent, +r.dataset.amount])",
            name,
        )
        assert len({row[0] for row in rows}) == len(rows)
        return dict(map(tuple, rows))

    def text(self, selector: str) -> str:
        """The text of the first element of a selector."""
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def kept(self) -> tuple[int, int]:
        """How many nodes and edges the page says it keeps."""
        return tuple(
            self.js(
                "const d = document.getElementById('kept').dataset; return [+d.nodes, +d.edges]"
            )
        )

    def requests(self) -> list[str]:
        """What was asked for since the page was opened, beside files and data."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert asked, "the log holds the page itself at least"
        return [address for address in asked if not address.startswith(_ALLOWED)]

    def complaints(self) -> list[str]:
        """What the console said."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
