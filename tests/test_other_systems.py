"""What differs on Windows and macOS, as far as it can be held to on another system."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.build import run_config
from tsugiki.files import file_name
from tsugiki.runs.record import Provenance
from tsugiki.runs.store import Run, RunBusy, Store
from tsugiki.study import executors
from tsugiki.train import meter

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
OF_ONE_SYSTEM = {"fcntl", "grp", "msvcrt", "pwd", "resource", "termios", "winreg"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_module_needs_one_system_to_be_imported(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            assert not OF_ONE_SYSTEM & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in OF_ONE_SYSTEM


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_text_is_read_and_written_in_an_encoding_that_is_named(path: Path) -> None:
    """Python 3.11 takes the system's otherwise: CP932 on a Japanese Windows."""
    place = {"read_text": 0, "write_text": 1}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        if node.func.attr in place:
            assert named or len(node.args) > place[node.func.attr], f"line {node.lineno}"
        elif node.func.attr == "open" and len(node.args) < 2:  # a path's, not a store's
            mode = (
                node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            )
            assert named or "b" in str(mode), f"line {node.lineno}"


def test_a_pipe_in_cp932_gets_utf_8() -> None:
    """A Japanese Windows asks for CP932 where output goes into a pipe or a file."""
    for arguments, wanted in ((["--help"], "接ぎ木"), (["study", "日本語·ü"], "日本語·ü")):
        done = subprocess.run(
            [sys.executable, "-m", "tsugiki", *arguments],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "cp932", "PYTHONUTF8": "0"},
        )
        assert wanted in (done.stdout + done.stderr).decode("utf-8")


def test_a_run_has_a_name_that_windows_takes(tmp_path: Path) -> None:
    config = run_config("model", "task", model={"path": "builtin", "name": "1.8B: base?"})
    numerics = {"compute": "fp32", "base": "fp32", "trained": "fp32"}
    made = {"model_sha256": "0", "device": "cpu", "numerics": numerics}
    folder = Store(tmp_path).open(config, Provenance.model_validate(made)).folder
    assert folder.name.startswith("task-1.8B_ base_-lora-")
    assert file_name('a<b>c:d"e/f\\g|h?i*j') == "a_b_c_d_e_f_g_h_i_j"


def test_a_run_is_locked_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of the lock file, without waiting; what is taken raises `OSError`, as there."""
    held = set[int]()

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        if os.fstat(handle).st_ino in held:
            raise PermissionError(13, "Permission denied")
        held.add(os.fstat(handle).st_ino)

    fake = ModuleType("msvcrt")
    vars(fake).update(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(sys, "platform", "win32")
    run = Run(tmp_path / "runs" / "a-b-lora-0")
    with run.lock(), pytest.raises(RunBusy), run.lock():
        pass


@pytest.mark.parametrize(("system", "expected"), [("win32", 7), ("darwin", 5), ("linux", 5 * 1024)])
def test_the_peak_of_a_process_is_in_bytes(
    system: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    usage, process = SimpleNamespace(ru_maxrss=5), SimpleNamespace(peak_wset=7)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(
        meter.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: process)
    )
    monkeypatch.setattr(sys, "platform", system)
    assert meter.peak_process_bytes() == expected


@pytest.mark.parametrize("system", ["win32", "linux"])
def test_a_worker_stops_as_on_ctrl_c_when_its_parent_ends(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.kill` ends a process of Windows at once, without its checkpoint."""
    told, said = list[str](), threading.Event()

    def tell(how: str) -> None:
        told.append(how)
        said.set()

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(executors.os, "read", lambda handle, count: b"")
    monkeypatch.setattr(executors.os, "kill", lambda process, number: tell("kill"))
    monkeypatch.setattr(executors.signal, "raise_signal", lambda number: tell("raise"))
    executors.stop_with_parent()
    assert said.wait(10)
    assert told == ["raise" if system == "win32" else "kill"]


def test_a_killed_worker_is_known_on_every_system() -> None:
    assert [executors._was_killed(code) for code in (0, 2, 3, 130, -9, 0xC0000005)] == [
        *[False] * 4,
        *[True] * 2,
    ]
    assert executors._signal(-9) == "SIGKILL"
    assert executors._signal(0xC0000005) == "exit code 0xc0000005"
