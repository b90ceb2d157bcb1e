"""An export that is killed: the folder is whole or not there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.build import TRAIN, run_config
from tsugiki.files import sha256_of
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_run

KILLS = 12


@pytest.mark.slow
def test_a_killed_export_is_whole_or_not_there(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, task_file, train={**TRAIN, "epochs": 1})
    [record] = run_group([config], Store(tmp_path / "out"))
    export_run(record, tmp_path / "whole")
    wanted = {path.name: sha256_of(path) for path in (tmp_path / "whole").iterdir()}
    dice, left = random.Random(0), {"whole": 0, "not there": 0}
    for number in range(KILLS):
        to = tmp_path / f"killed-{number}"
        command = [sys.executable, "-m", "tsugiki", "export", str(record.folder), "--to", str(to)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not list(tmp_path.glob(f".{to.name}.*")):
            pass  # until the draft is there
        time.sleep(dice.uniform(0, 0.006))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if to.exists():
            assert {path.name: sha256_of(path) for path in to.iterdir()} == wanted
        left["whole" if to.exists() else "not there"] += 1
        export_run(record, tmp_path / f"again-{number}")  # what was left is in nobody's way
    assert left["not there"] > 0, left
