"""The list of runs: names that can be copied, orders, filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import in_this_process

pytestmark = pytest.mark.precision

KEPT = Path(__file__).parents[1] / "kept"
NAMES = sorted(path.name for path in (KEPT / "out" / "runs").iterdir())


def listed(patch: pytest.MonkeyPatch, *arguments: str) -> list[dict[str, object]]:
    done = in_this_process(patch, "ls", "--out", "out", "--json", *arguments, cwd=KEPT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_terminal_of_80_columns_shows_every_name_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if standard output were a terminal
    monkeypatch.setenv("COLUMNS", "80")
    done = in_this_process(monkeypatch, "ls", "--out", "out", cwd=KEPT)
    *lines, last = done.stdout.splitlines()
    assert sorted(line for line in lines if not line.startswith(" ")) == NAMES
    assert last.removeprefix("Next: tsugiki show out/runs/") == lines[-2]


def test_orders_end_with_what_one_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started = [str(row["started"]) for row in listed(monkeypatch)]
    assert started == sorted(started)
    assert [row["run"] for row in listed(monkeypatch, "--sort", "name")] == NAMES
    for part in ("validation", "test"):
        scores = [row[f"{part}_score"] for row in listed(monkeypatch, "--sort", part)]
        known = [score for score in scores if score is not None]
        assert scores == [None] * (len(scores) - len(known)) + sorted(known)


def test_filters_keep_what_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    every = listed(monkeypatch)
    some = listed(monkeypatch, "--method", "lora", "--task", "likes", "--status", "done")
    wanted = {"method": "lora", "task": "likes", "status": "done"}
    assert some == [row for row in every if wanted.items() <= row.items()]
    assert 0 < len(some) < len(every)
    assert listed(monkeypatch, "--model", str(every[0]["model"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort", "tme"], '--sort "tme": no such order. Did you mean "time"?'),
        (["--task", "like"], '--task "like": no run has it. Did you mean "likes"?'),
        (["--method", "lora", "--status", "stopped"], "no run has"),
    ],
)
def test_what_no_run_has_is_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(monkeypatch, "ls", "--out", "out", *arguments, cwd=KEPT)
    assert done.returncode == 2
    assert message in done.stderr
