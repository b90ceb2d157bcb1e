"""What the workers of `--jobs` are doing is said by the study's own process, each on a line of its
own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.build import run_config, study_of
from tsugiki.cli.progress import Display
from tsugiki.config.run import RunConfig
from tsugiki.runs.events import Events
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.study.cells import parse_study
from tsugiki.study.executors import ThisProcess, WorkerProcesses
from tsugiki.study.left import Left
from tsugiki.study.messages import Sender, messages, pass_on
from tsugiki.study.worker import run_stage
from tsugiki.train.engine import Progress


def now(step: int) -> Progress:
    return Progress(
        lane="", step=step, steps=40, loss=1.5, tokens_per_s=9e3, memory_bytes=0, left_s=61.0
    )


def through_a_pipe(tell: object, hear: Events, cells: list[tuple]) -> None:
    """Whatever `tell` says with a worker's `Sender` is heard as the study's process hears it."""
    reads, writes = os.pipe()
    tell(Sender(writes))
    os.write(writes, b'["note", "cut sho')
    os.close(writes)
    with os.fdopen(reads, "rb") as lines:
        for line in lines:
            pass_on(line, hear, lambda key, values: cells.append((key, values)))


def test_events_pass_through_a_pipe(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    given = study_of(model_folder, task_file)
    study = parse_study({**given, "methods": given["methods"][1:]}, "study")
    started: list[RunConfig] = []
    ended: list[RunRecord] = []
    trained: list[Progress] = []
    scored: list[tuple] = []
    notes: list[str] = []
    cells: list[tuple] = []
    hear = Events(
        on_start=started.extend,
        on_train=trained.append,
        on_score=lambda *values: scored.append(values),
        on_note=notes.append,
        on_end=ended.append,
    )

    def work(sender: Sender) -> None:
        for stage in ("cells", "test"):
            run_stage(study, Store(tmp_path), stage, sender.events, sender.on_cell)
            sender.sent_at = -1e9
            sender.events.on_train(now(10))
            sender.events.on_train(now(20))
            sender.note("満")

    through_a_pipe(work, hear, cells)
    kept = {record.config: record for record in Store(tmp_path).records()}
    assert set(started) == kept.keys()
    assert {record.config: record.status for record in ended} == {
        config: record.status for config, record in kept.items()
    }
    assert "failed" in {record.status for record in ended}
    assert now(10) in trained
    assert now(20) not in trained, "a second has not passed"
    assert "満" in notes
    assert not any("cut sho" in note for note in notes)
    assert [key for key, _ in cells] == ["chosen"]
    assert "FT · learning_rate 0.001" in cells[0][1]["label"]


def test_a_worker_whose_study_has_ended_finishes_its_step(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    config = run_config(model_folder, task_file)
    [record] = run_group([config], Store(tmp_path), Sender(writes).events)
    os.close(writes)
    assert record.status == "done"


def test_every_worker_is_heard_until_it_ends() -> None:
    code = "import sys; print(sys.argv[1], flush=True)"
    command = [sys.executable, "-c", code]
    workers = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in ("one", "two")
    ]
    heard = list(messages(workers))
    for number, line in ((1, b"one\n"), (2, b"two\n")):
        assert [said for own, said in heard if own == number] == [line, None]
    assert [worker.returncode for worker in workers] == [0, 0]


def test_what_all_workers_note_is_said_once(tmp_path: Path) -> None:
    code = 'import json, sys; print(json.dumps(["note", sys.argv[1]]), flush=True)'
    said: list[str] = []

    class Line:
        events = Events(on_note=said.append)

        def on_cell(self, key: str, values: object) -> None: ...

        def close(self) -> None: ...

    study = parse_study(study_of(tmp_path / "model", tmp_path / "task.toml"), "study")
    many = WorkerProcesses(
        ThisProcess(study=study, store=Store(tmp_path), events=Events()),
        hear=lambda events, on_cell, number: events,
        arguments=[],
        jobs=3,
        lines=lambda number: Line(),
    )
    for _ in ("cells", "seeds"):
        many._show(
            [
                subprocess.Popen([sys.executable, "-c", code, note], stdout=subprocess.PIPE)
                for note in ("満", "満", "空")
            ],
            set(),
        )
    assert sorted(said) == ["満", "空"]


def shown(terminal: bool) -> str:
    display = Display("en", "x")
    display.console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    display.on_left(lambda: Left(725.0, whole=True))
    with display:
        lines = [display.worker(1), display.worker(2)]
        for number, line in enumerate(lines, start=3):
            line.on_cell("cell", {"number": number, "total": 7, "label": f"[{number}]"})
        lines[0].events.on_train(now(10))
        lines[1].events.on_score("validation", 64, 252)
        if display.status:
            display.console.print(display.status.renderable.text)
        lines[0].close()
        lines[1].events.on_note("remark")
        lines[1].on_cell("chosen", {"label": "X"})
        if display.status:
            display.console.print(display.status.renderable.text)
    return display.console.file.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    said = shown(terminal=False).splitlines()
    assert said[1:] == [
        "configuration 3 of 7: [3] · 12 min left in all",
        "configuration 4 of 7: [4] · 12 min left in all",
        "remark",
        "chosen: X · 12 min left in all",
    ], "and of what goes on one line every quarter of a minute"
    assert "\x1b" not in "".join(said)


def test_a_terminal_gets_a_line_a_worker() -> None:
    said = shown(terminal=True)
    assert (
        "configuration 3 of 7: [3] step 10/40 · loss 1.500 · 9,000 tokens/s · 0.0 GiB · 1:01 left\n"
        "configuration 4 of 7: [4] answers on validation 64/252 · 12 min left in all\n"
    ) in said
    assert "\x1b[2Kchosen: X · 12 min left in all\n" in said, "the other has ended"


STUDY = """
name = "tiny"
train = { epochs = 1, precision = "fp32" }
models = [{ path = "builtin" }]
tasks = [{ name = "sample_nli", train_rows = 80, eval_rows = 30 }]
methods = [
  { name = "LoRA", kind = "lora", grid = { learning_rate = [1e-3, 1e-2], rank = [2] } },
  { name = "FT", kind = "full", grid = { learning_rate = [1e-3, 1e20] } },
]
"""


@pytest.mark.slow
def test_a_study_in_two_workers_says_what_they_do(tmp_path: Path) -> None:
    """On pipes plain lines: of what begins, of a failure when it happens, of what answers test."""
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "tsugiki", "study", "study.toml", "--jobs", "2", "--lang=en"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    said = done.stderr.splitlines()
    names = [
        "LoRA · learning_rate 0.001, rank 2",
        "LoRA · learning_rate 0.01, rank 2",
        "FT · learning_rate 0.001",
        "FT · learning_rate 1e+20",
    ]
    begun = [
        f"configuration {number} of 4: builtin · sample_nli · {name}"
        for number, name in enumerate(names, start=1)
    ]
    first = [next(n for n, line in enumerate(said) if line.startswith(head)) for head in begun]
    failed = next(
        n
        for n, line in enumerate(said)
        if line.startswith(f"builtin · sample_nli · {names[3]}: failed: ")
    )
    chosen = next(n for n, line in enumerate(said) if line.startswith("chosen: "))
    assert first[3] < failed < chosen
    assert max(first) < chosen
    heads = ("configuration ", "builtin · sample_nli · ", "chosen: ", "tsugiki: ")
    assert all(line.startswith(heads) for line in said), "each says what it is about"
    assert "finished before" not in done.stderr
    assert done.stdout.startswith(("#", "**", "|", "builtin")), "no worker writes to the output"
