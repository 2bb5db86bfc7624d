"""A real Chromium without a window, for tests of pages: driven by chromedriver, over WebDriver.

Both are Debian's: `apt install chromium chromium-driver`. The protocol is JSON over HTTP to a
process of our own; a library for it would bring ten others.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
"""Programs that are not installed here."""

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver gives elements

# Of https://www.w3.org/TR/webdriver2/#keyboard-actions
KEYS = {
    "Enter": "\ue007",
    "Shift": "\ue008",
    "Control": "\ue009",
    "End": "\ue010",
    "Home": "\ue011",
    "Left": "\ue012",
    "Up": "\ue013",
    "Right": "\ue014",
    "Down": "\ue015",
    "Tab": "\ue004",
}


class Browser:
    """One Chromium with one window."""

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 800) -> None:
        """Start it.

        Args:
            folder: where it keeps what it keeps, and where its pages may be.
        """
        environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            assert self._driver.stdout is not None
            for line in self._driver.stdout:
                found = re.search(r"started successfully on port (\d+)", line)
                if found:
                    break
            else:
                raise RuntimeError("chromedriver has ended")
            self._connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            arguments += [
                f"--user-data-dir={folder / 'chromium'}",
                f"--window-size={width},{height}",
            ]
            arguments += ["--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]
            options = {"args": arguments}
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            self._session = ""
            made = self._ask("POST", "/session", capabilities={"alwaysMatch": capabilities})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End it, and all its processes."""
        try:
            self._ask("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(30)
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def look(self, *, width: int, height: int = 800, dark: bool = False) -> None:
        """Be so large, and dark or light."""
        self._chromium(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._chromium("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: str | Path) -> None:
        """Load a page, to its end."""
        address = page.as_uri() if isinstance(page, Path) else page
        self._ask("POST", "/url", url=address)

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script's body in the page; gives what it returns."""
        return self._ask("POST", "/execute/sync", script=script, args=list(arguments))

    def wait(self, condition: str, *arguments: object) -> Any:
        """Wait until an expression is true in the page, looked at with each frame."""
        script = (
            "const [done, args] = [arguments[arguments.length - 1], [...arguments]];"
            f"const look = () => {{ const found = (function() {{ return {condition} }})"
            "(...args); found ? done(found) : setTimeout(look, 15) }; look()"
        )
        return self._ask("POST", "/execute/async", script=script, args=list(arguments))

    def click(self, selector: str, *, at: int = 0, keys: tuple[str, ...] = ()) -> None:
        """Click with the mouse on the middle of an element, while keys are held."""
        element = self.run(
            "const found = document.querySelectorAll(arguments[0])[arguments[1]];"
            "found.scrollIntoView({block: 'center'}); return found",
            selector,
            at,
        )
        hold = [{"type": "keyDown", "value": KEYS[key]} for key in keys]
        drop = [{"type": "keyUp", "value": KEYS[key]} for key in keys]
        pause = {"type": "pause"}
        mouse = [
            *[pause] * len(hold),
            {"type": "pointerMove", "origin": {_ELEMENT: element[_ELEMENT]}, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        board = [*hold, pause, pause, pause, *drop]
        self._act({"type": "pointer", "id": "mouse", "actions": mouse}, board)

    def press(self, *keys: str) -> None:
        """Press keys one after another; `Shift+x` holds Shift."""
        board = []
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            every = [KEYS.get(one, one) for one in [*held, last]]
            board += [{"type": "keyDown", "value": one} for one in every]
            board += [{"type": "keyUp", "value": one} for one in reversed(every)]
        self._act(None, board)

    def windows(self) -> list[str]:
        """Give the handles of its windows and tabs."""
        found: list[str] = self._ask("GET", "/window/handles")
        return found

    def wait_windows(self, count: int) -> None:
        """Wait until there are so many; asking takes the browser's own time."""
        while len(self.windows()) < count:
            self.run("return 0")

    def close_other_windows(self) -> list[str]:
        """Close all but the first; gives their addresses."""
        first, *others = self.windows()
        found = []
        for other in others:
            self._ask("POST", "/window", handle=other)
            self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
            found.append(self.run("return location.href"))
            self._ask("DELETE", "/window")
        self._ask("POST", "/window", handle=first)
        return found

    def picture(self, path: Path) -> None:
        """Save what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """Give what the console has said since the last time."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", type="browser")]

    def _act(self, pointer: dict[str, object] | None, board: list[dict[str, str]]) -> None:
        actions: list[dict[str, object]] = [pointer] if pointer else []
        actions.append({"type": "key", "id": "keyboard", "actions": board})
        self._ask("POST", "/actions", actions=actions)

    def _chromium(self, command: str, **parameters: object) -> Any:
        return self._ask("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def _ask(self, method: str, path: str, **fields: object) -> Any:
        body = json.dumps(fields) if method == "POST" else None
        self._connection.request(method, self._session + path, body)
        value = json.loads(self._connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value
