"""A part of the campaign against every entrance (`make campaign` runs it whole): each input ends
as it said beforehand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_part_of_the_campaign_ends_as_it_said_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.campaign.doors",
        "--seed",
        "7",
        "--share",
        "0.1",
        "--out",
        str(tmp_path / "doors.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "doors.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 50
    (tmp_path / "doors.jsonl").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).returncode == 0
    assert len((tmp_path / "doors.jsonl").read_text(encoding="utf-8").splitlines()) == len(lines)


def test_a_campaign_says_when_an_input_did_not_end_as_it_said(tmp_path: Path) -> None:
    code = (
        "import random, tests.campaign.doors as doors\n"
        "bad = doors.Input(entrance='x', name='y', wanted='read', make=lambda folder, dice: "
        "['check', 'nowhere.toml'])\n"
        "doors.all_inputs = lambda: [bad]\nfrom pathlib import Path\nfound = doors.campaign(0, "
        f"1.0, Path({str(tmp_path / 'd.jsonl')!r}))\n"
        "assert not doors.right(found[0]), found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "must be read, was refused" in done.stdout


@pytest.mark.slow
def test_a_tenth_of_the_studies_with_faults_end_in_reports(tmp_path: Path) -> None:
    """The seed says with which fault a campaign begins: these are the last ones, killed workers
    among them."""
    command = [
        sys.executable,
        "-m",
        "tests.campaign.faults",
        "--seed",
        "11",
        "--studies",
        "6",
        "--out",
        str(tmp_path / "faults.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert len((tmp_path / "faults.jsonl").read_text(encoding="utf-8").splitlines()) == 6
