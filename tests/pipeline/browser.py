"""A headless Chromium, driven through chromedriver's own protocol: HTTP and JSON."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

# It talks to nobody by itself, and names are not resolved.
_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
]
_SECONDS = 60.0


def missing() -> str:
    """Why there is no browser here; empty where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} here (Debian: chromium, chromium-driver)" * bool(absent)


class Browser:
    """One window.

    Args:
        port: of chromedriver. profile: an empty directory.
    """

    def __init__(self, port: int, profile: str) -> None:
        self._port, self._session = port, ""
        chrome = {
            "binary": shutil.which("chromium"),
            "args": [*_OPTIONS, f"--user-data-dir={profile}"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": chrome,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        # Away from its own first page, which asks for parts of the browser.
        self._ask("POST", "/url", {"url": "about:blank"})
        self.requested()

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        with closing(connection):
            connection.request(method, self._session + path, body)
            answer = json.load(connection.getresponse())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["message"])
        return answer

    def command(self, name: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": values})

    def show(self, page: Path, *, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Load a file afresh in a window of that width, in CSS pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a script returns that runs in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What the page, or the browser about it, has complained of since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def requested(self) -> list[str]:
        """Every address that was asked for since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [one for one in events if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in asked]

    def printed(self) -> bytes:
        """The page on A4, as PDF."""
        made = self.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(made["data"])

    def picture(self, path: Path) -> None:
        """Keep the whole page as a PNG."""
        made = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self) -> None:
        """End the window."""
        self._ask("DELETE", "")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    command = ["chromedriver", "--port=0"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert driver.stdout is not None
        said = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next(int(found[1]) for found in said if found)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            opened = Browser(port, profile)
            try:
                yield opened
            finally:
                opened.close()
    finally:
        driver.terminate()
        driver.wait(timeout=_SECONDS)
        driver.stdout.close()
