"""A headless Chromium for tests, driven over WebDriver, which is HTTP and JSON."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_SECONDS

from shardctl.local.servers.process import free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, by the standard
ENTER, TAB, ESCAPE, UP, HOME = "\ue007", "\ue004", "\ue00c", "\ue013", "\ue011"
NAMED_ROLES = {
    *(
        "button",
        "checkbox",
        "combobox",
        "dialog",
        "form",
        "image",
        "img",
        "progressbar",
        "region",
        "search",
        "searchbox",
    ),
    *("slider", "spinbutton", "textbox"),
}
# Each visible text's contrast with the nearest background that isn't transparent; large texts need less.
FAINT = """(() => {
  const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (rgb(colour)[3] !== 0) return rgb(colour);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!text || !element.checkVisibility()) continue;
    const [above, below] = [light(rgb(style.color)), light(behind(element))].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (above + 0.05) / (below + 0.05);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${text}: ${contrast.toFixed(2)}`);
  }
  return faint;
})()"""


class Browser:
    """One window. `with Browser() as browser: browser.open(url)`."""

    def __init__(self) -> None:
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
        if not (driver and chromium):
            reason = (
                "no chromium or no chromedriver on the PATH; Debian's packages chromium and chromium-driver have them"
            )
            if os.environ.get("CI"):
                pytest.fail(reason)  # there a skipped test is a hole that nobody sees
            pytest.skip(reason)
        port = free_port()
        self._driver = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, trust_env=False)
        try:
            self._begin(chromium)
        except BaseException:
            self.close()
            raise

    def _begin(self, chromium: str) -> None:
        until(self._answers, PATIENCE_SECONDS)
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--hide-scrollbars",
        ]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own has no use for root
        options = {"binary": chromium, "args": arguments}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = (
            f"/session/{self._http.post('/session', json={'capabilities': wanted}).json()['value']['sessionId']}"
        )

    def _answers(self) -> bool:
        try:
            return bool(self._http.get("/status").json()["value"]["ready"])
        except httpx.TransportError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        try:
            if hasattr(self, "_session"):
                self._http.delete(self._session)
        finally:
            self._http.close()
            self._driver.terminate()
            self._driver.wait(PATIENCE_SECONDS)

    # -- what a person does ------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def click(self, selector: str) -> None:
        self._post(f"/element/{self._element(selector)}/click", {})

    def type(self, selector: str, keys: str) -> None:
        self._post(f"/element/{self._element(selector)}/value", {"text": keys})

    def press(self, keys: str) -> None:
        """On whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    # -- what it sees ------------------------------------------------------------------------------------------------

    def run(self, script: str):
        """The value of a JavaScript expression."""
        return self._post("/execute/sync", {"script": f"return {script}", "args": []})

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({selector!r})?.innerText ?? ''")

    def until_text(self, selector: str, part: str, seconds: float = PATIENCE_SECONDS) -> str:
        assert until(lambda: part in self.text(selector), seconds), f"{selector}: {self.text(selector)!r}, no {part!r}"
        return self.text(selector)

    def complaints(self) -> list[str]:
        """What the console has: faults of scripts, refusals of the content security policy."""
        entries = self._post("/se/log", {"type": "browser"})
        return [
            entry["message"] for entry in entries if entry["source"] != "rendering"
        ]  # which gives advice to a test's own code

    def nameless(self) -> list[str]:
        """The roles of what a person can act on or look at, and that has no name for a screen reader."""
        nodes = self._devtools("Accessibility.getFullAXTree")["nodes"]
        named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
        return [role for role, name in named if role in NAMED_ROLES and not name]

    def faint(self) -> list[str]:
        """The texts whose colour has too little contrast with what is behind them, by WCAG 2.2 AA."""
        return self.run(FAINT)

    # -- how it looks ------------------------------------------------------------------------------------------------

    def look(self, *, dark: bool, width: int, height: int = 900) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", features=features)
        self._devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def screenshot(self, path: Path) -> None:
        """The whole page, also what is below the window."""
        answer = self._devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _devtools(self, command: str, **arguments):
        return self._post("/goog/cdp/execute", {"cmd": command, "params": arguments})

    def _element(self, selector: str) -> str:
        return self._post("/element", {"using": "css selector", "value": selector})[ELEMENT]

    def _post(self, path: str, body: dict):
        answer = self._http.post(self._session + path, json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, f"{path} {body}: {value['error']}: {value['message'].splitlines()[0]}"
        return value


def until(true, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
