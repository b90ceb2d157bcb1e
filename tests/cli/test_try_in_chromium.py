"""The page in a real browser: its form is filled in and sent, what comes back is looked at."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.build import TRAIN, run_config
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
FILL = """
for (const [name, value] of Object.entries({given}))
    document.getElementsByName(name)[0].value = value;
document.querySelector('button[value="row"]').click();
"""
SEEN = """JSON.stringify({
    answers: [...document.querySelectorAll('.answer')].map(each => each.textContent),
    bars: document.querySelectorAll('.bar div').length,
    scripts: document.scripts.length,
    kept: document.getElementsByName('field:a')[0].value,
    wide: document.documentElement.scrollWidth <= window.innerWidth})"""


class Browser:
    """Chromium's own protocol over two pipes."""

    def __init__(self, folder: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,900",
            "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        # The protocol's pipes are its file descriptors 3 and 4.
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.reads, self.writes = ours_in, os.fdopen(ours_out, "wb")
        self.number, self.session = 0, ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writes.write(json.dumps(message).encode() + b"\0")
        self.writes.flush()
        while True:
            answer = bytearray()
            while (byte := self._byte()) != b"\0":
                answer += byte
            said: dict[str, Any] = json.loads(answer)
            if said.get("id") == self.number:
                return dict(said["result"])

    def _byte(self) -> bytes:
        there, _, _ = select.select([self.reads], [], [], 30)
        byte = os.read(self.reads, 1) if there else b""
        assert byte, "the browser ended, or says nothing"
        return byte

    def value(self, script: str) -> Any:
        return self("Runtime.evaluate", expression=script)["result"].get("value")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tsugiki", "try", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_form_is_sent_and_answered_in_a_browser(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, task_file, train={**TRAIN, "epochs": 1})
    [record] = run_group([config], Store(tmp_path / "out"))
    text = "犬が庭を走っています。<script>document.title = 'run'</script>"
    with served(record.folder) as address:
        browser = Browser(tmp_path / "profile")
        try:
            browser("Page.navigate", url=address)
            for _ in range(100):
                if browser.value("document.readyState") == "complete" and browser.value(
                    "document.getElementsByName('field:a').length"
                ):
                    break
                time.sleep(0.1)
            given = json.dumps({"field:a": text, "field:b": "猫がいる。"})
            browser.value(FILL.replace("{given}", given))
            for _ in range(200):
                if browser.value("document.querySelectorAll('.answer').length"):
                    break
                time.sleep(0.1)
            seen = json.loads(browser.value(SEEN))
        finally:
            os.killpg(browser.process.pid, signal.SIGKILL)  # with the processes it started
            browser.process.wait()
    assert len(seen["answers"]) == 2, "the base and the run"
    assert seen["bars"] == 6
    assert (seen["scripts"], seen["kept"]) == (0, text)
    assert seen["wide"], "it fits a telephone's width"
