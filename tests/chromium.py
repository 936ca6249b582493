"""A headless Chromium driven over a pipe with its DevTools protocol: JSON messages that end with a zero byte."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def find_browser() -> str | None:
    """The browser that CHROMIUM names, or the first on the path."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser. What the page says on its console is in `messages`, what it asks for in `requests`."""

    def __init__(self, program: str, profile: Path) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._last, self._buffer = 0, b""
        there, self._out = os.pipe()
        self._in, back = os.pipe()

        def wires() -> None:  # the browser reads file descriptor 3 and writes 4; neither may be lost on the way
            low, high = os.dup2(there, 100), os.dup2(back, 101)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=wires,
        )
        os.close(there)
        os.close(back)
        target = self._target()
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)

    def open(self, file: Path, width: int, *, dark: bool = False, script: bool = True) -> None:
        """Load a file in a window of that width, as an offline reader with that taste would."""
        self.messages.clear()
        self.requests.clear()
        self._events.clear()
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        self._call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Page.navigate", url=file.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Put the pointer there."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    # the pipe

    def _target(self) -> str:
        """The page that the browser opens with; it may take a moment."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pages: Sequence[dict[str, Any]] = self._call("Target.getTargets")["targetInfos"]
            for page in pages:
                if page["type"] == "page":
                    return str(page["targetId"])
            time.sleep(0.1)
        raise TimeoutError("the browser opened no page")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(60)
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _wait(self, event: str) -> None:
        while not any(seen.get("method") == event for seen in self._events):
            self._read(60)

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next message; events are kept, and what they say of the console and the network is noted."""
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(self._in, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError("the browser does not answer")
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._events.append(message)
        values = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                said = " ".join(str(item.get("value", item.get("description", ""))) for item in values["args"])
                self.messages.append(f"{values['type']}: {said}")
            case "Runtime.exceptionThrown":
                self.messages.append(f"exception: {values['exceptionDetails']}")
            case "Log.entryAdded":
                self.messages.append(f"{values['entry']['level']}: {values['entry']['text']}")
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
        return message
