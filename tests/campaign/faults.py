"""A campaign of small studies with a fault in each: every one must end in a report that names it, and lose nothing else.

    python -m tests.campaign.faults [--seed 0] [--studies 60] [--out campaign/faults.jsonl] [--page docs/reliability.md]

A study has one or two tasks and models, two LoRA and two FT cells each, one or two seeds. The fault and where it strikes are drawn from the
seed; studies are made one after another, and a stopped campaign of the same code goes on where it was. Counted:

    report     pages in both languages exist, and the study says whether it is whole
    lost       cells that the fault does not touch without a result, methods it does not touch without a test score, finished results
               that changed
    named      the fault's own words stand on the page, and the study says that it is not whole

The exit code is 1 unless every study has its report, lost nothing and named its fault.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "TSUGIKI_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
        "TSUGIKI_CPU_BF16": "0",
    }
)

import psutil
import pytest
import torch

from tests import build
from tests.campaign.doors import ROOT, code_now
from tsugiki.cli.printing import print_report
from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.runs import group as run_module
from tsugiki.runs.store import Store
from tsugiki.study import chosen, sweep
from tsugiki.study.cells import Cell, StudyResult, collect, parse_study
from tsugiki.study.missing import study_folder
from tsugiki.train import memory
from tsugiki.train import open_step as step_module
from tsugiki.train.step import EagerStep

Touched = Callable[[RunConfig], bool]


@dataclass(kw_only=True)
class Trial:
    """One study on disk, before its fault: `patch` is undone afterwards."""

    folder: Path
    dice: random.Random
    patch: pytest.MonkeyPatch
    given: dict[str, Any]
    said: io.StringIO = field(default_factory=io.StringIO)

    @property
    def spec(self) -> StudySpec:
        return parse_study(self.given, "study")

    @property
    def store(self) -> Store:
        return Store(self.folder / "out")

    def run(self) -> StudyResult:
        return sweep.run_study(self.spec, self.store)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`strike` prepares or runs what comes before the last call; it returns which configurations may lack a result, and words that must be said."""

    name: str
    strike: Callable[[Trial], tuple[Touched, str]]
    whole: bool = False  # nothing is missing in the end
    alone: bool = False  # `strike` runs the study itself, by the command line


def task_text(path: Path, name: str) -> str:
    """A tiny task under a name, with prompts of its own: two tasks of one content are one run."""
    text = path.read_text(encoding="utf-8").replace('name = "tiny"', f'name = "{name}"')
    return text.replace("[SEP]文2", f"／{name}文2")


def new_trial(folder: Path, dice: random.Random, patch: pytest.MonkeyPatch, master: Path) -> Trial:
    models = [
        {"path": str(folder / name), "name": name}
        for name in ("good", "other")[: dice.choice((1, 2))]
    ]
    for one in models:
        shutil.copytree(master, one["path"])
    tasks = []
    for name in ("one", "two")[: dice.choice((1, 2))]:
        path = build.save_task(folder / name)
        text = task_text(path, name)
        tasks.append({"name": str(path.rename(path.with_name(f"{name}.toml")))})
        Path(tasks[-1]["name"]).write_text(text, encoding="utf-8")
    lora = {"name": "LoRA", "kind": "lora", "grid": {"rank": [2], "learning_rate": [1e-3, 5e-3]}}
    full = {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-3, 2e-3]}}
    train = {"epochs": 1, "batch": 8, "precision": "fp32"}
    given = {
        "name": "trial",
        "train": train,
        "models": models,
        "tasks": tasks,
        "methods": [lora, full],
        "seeds": dice.choice((1, 2)),
    }
    return Trial(folder=folder, dice=dice, patch=patch, given=given)


def last_task(trial: Trial) -> tuple[Path, Touched]:
    """A task beside good ones (a second is made where there is one), and what it touches."""
    if len(trial.given["tasks"]) == 1:
        path = build.save_task(trial.folder / "two")
        text = task_text(path, "two")
        (trial.folder / "two" / "two.toml").write_text(text, encoding="utf-8")
        trial.given["tasks"].append({"name": str(trial.folder / "two" / "two.toml")})
    name = trial.given["tasks"][-1]["name"]
    return Path(name).parent, lambda config: config.task.name == name


def last_model(trial: Trial) -> tuple[Path, Touched]:
    if len(trial.given["models"]) == 1:
        shutil.copytree(trial.given["models"][0]["path"], trial.folder / "other")
        trial.given["models"].append({"path": str(trial.folder / "other"), "name": "other"})
    path = trial.given["models"][-1]["path"]
    return Path(path), lambda config: config.model.path == path


def some_method(trial: Trial) -> tuple[str, Touched]:
    kind = trial.dice.choice(("lora", "full"))
    return kind, lambda config: config.method == kind


# ---- the faults --------------------------------------------------------------------------------------------------


def no_room(trial: Trial) -> tuple[Touched, str]:
    trial.patch.setattr(memory, "room", lambda device: (100_000, 24 * 2**30))
    return lambda config: config.method == "full", "full fine-tuning needs"


def out_of_memory(trial: Trial) -> tuple[Touched, str]:
    kind, touched = some_method(trial)
    real = step_module.open_step

    def open_step(model: Any, lanes: Any, *others: Any, **named: Any) -> Any:
        if lanes[0].moves.keeps_gradients == (kind == "lora"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, lanes, *others, **named)

    trial.patch.setattr(step_module, "open_step", open_step)
    return touched, "does not fit"


def missing_file(trial: Trial) -> tuple[Touched, str]:
    folder, touched = last_task(trial)
    part = trial.dice.choice(("train", "validation", "test"))
    (folder / f"{part}.jsonl").unlink()
    return touched, f"{part}.jsonl"


def broken_task(trial: Trial) -> tuple[Touched, str]:
    folder, touched = last_task(trial)
    path = folder / "validation.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[trial.dice.randrange(len(lines))] = trial.dice.choice(
        ('{"a": "犬", "b": "猫", "label": "x", "image": "1"}', "{", '{"a": "犬"}')
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return touched, "validation.jsonl"


def divergence(trial: Trial) -> tuple[Touched, str]:
    trial.given["methods"][1]["grid"]["learning_rate"] = trial.dice.choice(([1e6], [1e-3, 1e6]))
    return lambda config: config.train.learning_rate == 1e6, "diverged"


def refused_tokenizer(trial: Trial) -> tuple[Touched, str]:
    folder, touched = last_model(trial)
    (folder / "tokenizer.json").write_text(trial.dice.choice(("{", "{}", "[]")), encoding="utf-8")
    return touched, "tokenizer"


def cut_weights(trial: Trial) -> tuple[Touched, str]:
    folder, touched = last_model(trial)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: trial.dice.choice((4, 100, -10))])
    return touched, "model.safetensors"


def full_disk(trial: Trial) -> tuple[Touched, str]:
    """Nothing more is written of one kind of runs, after so many files."""
    kind, touched = some_method(trial)
    left = [trial.dice.randrange(1, 12)]
    from tsugiki.runs import store

    real = store.write_atomically

    def write(path: Path, content: bytes) -> None:
        if f"-{kind}-" in str(path):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content)

    trial.patch.setattr(store, "write_atomically", write)
    return touched, "No space left on device"


def bug(trial: Trial) -> tuple[Touched, str]:
    kind, touched = some_method(trial)
    real = run_module.fit

    def fit(step: Any, lanes: Any, *others: Any, **named: Any) -> Any:
        if lanes[0].moves.keeps_gradients == (kind == "lora"):
            raise RuntimeError("something that nobody thought of")
        return real(step, lanes, *others, **named)

    trial.patch.setattr(run_module, "fit", fit)
    return touched, "RuntimeError: something that nobody thought of"


def second_seed(trial: Trial) -> tuple[Touched, str]:
    trial.given["seeds"] = 2
    real = run_module.fit

    def fit(step: Any, lanes: Any, *others: Any, **named: Any) -> Any:
        if lanes[0].config.seed == 1 and not lanes[0].moves.keeps_gradients:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(step, lanes, *others, **named)

    trial.patch.setattr(run_module, "fit", fit)
    return (
        lambda config: config.train.seed == 1 and config.method == "full",
        "of 2 seeds of FT failed (seed 2",
    )


def damaged_record(trial: Trial) -> tuple[Touched, str]:
    trial.run()
    victim = trial.dice.choice(
        [record.folder for record in trial.store.records() if record.config.train.seed == 0]
    )
    touched = trial.store.root / "runs" / victim.name
    config = next(record.config for record in trial.store.records() if record.folder == touched)
    (touched / "outcome.json").write_text(trial.dice.choice(("", "{", "[1]")), encoding="utf-8")
    return lambda one: one == config, "outcome.json"


def data_gone_later(trial: Trial) -> tuple[Touched, str]:
    folder, touched = last_task(trial)
    trial.run()
    (folder / "test.jsonl").unlink()
    return touched, "cannot be read"


def test_cannot_be_scored(trial: Trial) -> tuple[Touched, str]:
    kind, touched = some_method(trial)
    real = chosen.score_run

    def score(record: Any, part: str, *others: Any) -> Any:
        if part == "test" and record.config.method == kind:
            raise OSError(
                errno.EIO, os.strerror(errno.EIO), str(record.folder / "answers-test.jsonl")
            )
        return real(record, part, *others)

    trial.patch.setattr(chosen, "score_run", score)
    return touched, "Input/output error"


def killed_and_again(trial: Trial) -> tuple[Touched, str]:
    """A kill in the middle of a step, once or twice; the last call goes on."""
    real, left = EagerStep.__call__, [trial.dice.randrange(1, 20)]

    def step(self: Any, lanes: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(self, lanes)

    trial.patch.setattr(EagerStep, "__call__", step)
    with contextlib.suppress(KeyboardInterrupt):
        trial.run()
    trial.patch.setattr(EagerStep, "__call__", real)
    return lambda config: False, "LoRA"


def killed_worker(trial: Trial) -> tuple[Touched, str]:
    """One of two workers, or the study's own process, is killed while they train; then the same command again, where it was the study's."""
    trial.given["train"] = {**trial.given["train"], "epochs": 150}
    trial.given["seeds"] = 1
    lines = ['name = "trial"\n[train]\nepochs = 150\nbatch = 8\nprecision = "fp32"\n']
    lines += [
        f'[[models]]\npath = "{one["path"]}"\nname = "{one["name"]}"\n'
        for one in trial.given["models"]
    ]
    lines += [f'[[tasks]]\nname = "{one["name"]}"\n' for one in trial.given["tasks"]]
    for one in trial.given["methods"]:
        grid = "\n".join(f"{name} = {values}" for name, values in one["grid"].items())
        lines.append(
            f'[[methods]]\nname = "{one["name"]}"\nkind = "{one["kind"]}"\n[methods.grid]\n{grid}\n'
        )
    path = trial.folder / "trial.toml"
    path.write_text("".join(lines), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "tsugiki",
        "study",
        str(path),
        "--out",
        str(trial.folder / "out"),
        "--jobs",
        "2",
    ]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, text=True
    )
    workers: list[psutil.Process] = []
    until = time.monotonic() + 60
    while time.monotonic() < until and not (
        workers and list((trial.folder / "out" / "runs").glob("*/outcome.json"))
    ):
        time.sleep(0.2)
        workers = psutil.Process(started.pid).children() if started.poll() is None else []
    parent = trial.dice.random() < 0.5
    victim = psutil.Process(started.pid) if parent else trial.dice.choice(workers)
    victim.send_signal(
        trial.dice.choice((signal.SIGKILL, signal.SIGTERM)) if parent else signal.SIGKILL
    )
    if not parent:
        trial.said.write(started.communicate(timeout=300)[0])
    started.wait(timeout=60)
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "workers live on"
    return lambda config: False, "LoRA" if parent else "workers were killed (SIGKILL)"


FAULTS = [
    Fault(name="no room for full fine-tuning", strike=no_room),
    Fault(name="out of memory in a step", strike=out_of_memory),
    Fault(name="a data file is missing", strike=missing_file),
    Fault(name="a broken task beside good ones", strike=broken_task),
    Fault(name="divergence", strike=divergence),
    Fault(name="a tokenizer that is refused", strike=refused_tokenizer),
    Fault(name="weights that are cut", strike=cut_weights),
    Fault(name="a full disk", strike=full_disk),
    Fault(name="an error nobody thought of", strike=bug),
    Fault(name="a second seed that does not fit", strike=second_seed),
    Fault(name="a damaged record of an earlier day", strike=damaged_record),
    Fault(name="data gone after a finished study", strike=data_gone_later),
    Fault(name="test cannot be scored", strike=test_cannot_be_scored),
    Fault(name="killed in a step, called again", strike=killed_and_again, whole=True),
    Fault(name="a killed worker, or its parent", strike=killed_worker, whole=True),
]


# ---- the campaign ------------------------------------------------------------------------------------------------


def trial_of(fault: Fault, seed: str, master: Path) -> dict[str, Any]:
    """Runs one study with its fault; what came of it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        trial = new_trial(Path(folder), random.Random(seed), patch, master)
        touched, words = fault.strike(trial)
        before = finished_now(trial.store)
        result, error = None, ""
        with contextlib.redirect_stdout(trial.said), contextlib.redirect_stderr(trial.said):
            try:
                result = trial.run()
                whole = print_report(result, trial.store.root, "tsugiki study trial.toml", False)
            except BaseException as broken:
                error = f"{type(broken).__name__}: {broken}"
        if result is None or error:
            return {"report": False, "lost": 0, "named": False, "said": error}
        patch.undo()
        pages = [
            study_folder(trial.store.root, trial.spec) / f"report.{language}.html"
            for language in ("en", "ja")
        ]
        text = (
            pages[0].read_text(encoding="utf-8").replace("&#39;", "'").replace("&#34;", '"')
            if pages[0].exists()
            else ""
        )
        again = collect(trial.spec, trial.store)
        lost = lost_of(again, touched, fault)
        after = finished_now(trial.store)
        changed = [
            name
            for name, parts in before.items()
            if not parts.items() <= after.get(name, {}).items()
            and not touched(config_of(trial.store, name))
        ]
        named = (words in text or words in trial.said.getvalue()) and (fault.whole or not whole)
        return {
            "report": all(page.exists() for page in pages),
            "lost": len(lost) + len(changed),
            "named": named,
            "said": "; ".join([*lost, *changed])[:300],
        }


def finished_now(store: Store) -> dict[str, dict[str, str]]:
    """What every finished run scored, by part."""
    done = [record for record in store.records() if record.status == "done"]
    return {
        one.folder.name: {scores.part: str(scores.scores) for scores in one.outcome.scores}
        for one in done
    }


def config_of(store: Store, name: str) -> RunConfig:
    path = store.root / "runs" / name / "config.json"
    return RunConfig(**json.loads(path.read_text(encoding="utf-8")))


def lost_of(result: StudyResult, touched: Touched, fault: Fault) -> list[str]:
    """Cells and methods that the fault does not touch and that have no result."""
    cells = [cell for cell in result.cells if not touched(cell.config)]
    lost = [
        cell.label
        for cell in cells
        if (record := result.record(cell)) is None or record.status != "done"
    ]
    by_key: dict[Any, list[Cell]] = {
        key: list(some) for key, some in itertools.groupby(result.cells, key=lambda cell: cell.key)
    }
    for key, some in by_key.items():
        if not any(touched(cell.config) for cell in some):
            chosen = result.chosen.get(key)
            record = None if chosen is None else result.record(chosen)
            if record is None or record.scores("test") is None:
                lost.append(f"{' · '.join(key)}: test")
    return lost


def campaign(seed: int, studies: int, out: Path) -> list[dict[str, Any]]:
    """Runs what is not in `out` yet; returns all rows."""
    kept = (
        [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        if out.exists()
        else []
    )
    code = code_now(Path(__file__))
    kept = [row for row in kept if row["seed"] == seed and row["code"] == code][:studies]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        master = build.save(Path(folder) / "model")
        for number in range(len(kept), studies):
            fault, start = FAULTS[(number + seed) % len(FAULTS)], time.monotonic()
            row = {
                "seed": seed,
                "code": code,
                "number": number,
                "fault": fault.name,
                **trial_of(fault, f"{seed}:{number}", master),
            }
            row["s"] = round(time.monotonic() - start, 1)
            kept.append(row)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if not right(row):
                print(f"[{number + 1}/{studies}] {fault.name}: {row}", flush=True)
    return kept


def right(row: dict[str, Any]) -> bool:
    return bool(row["report"] and row["named"] and not row["lost"])


def table(found: list[dict[str, Any]], seed: int) -> str:
    """The table of docs/reliability.md."""
    lines = [
        "| fault | studies | reports | results lost | faults not named | slowest (s) |",
        "|---|---|---|---|---|---|",
    ]
    for name in [*(fault.name for fault in FAULTS), "all"]:
        some = [row for row in found if name in ("all", row["fault"])]
        if some:
            cells = [
                name,
                len(some),
                sum(row["report"] for row in some),
                sum(row["lost"] for row in some),
                sum(not row["named"] for row in some),
            ]
            lines.append(
                "| " + " | ".join(map(str, [*cells, max(row["s"] for row in some)])) + " |"
            )
    machine = f"{os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    return "\n".join(lines) + f"\n\nSeed {seed}, {len(found)} studies; {machine}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "campaign" / "faults.jsonl")
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = campaign(given.seed, given.studies, given.out)
    made = table(found, given.seed)
    print(made)
    if given.page is not None:
        head, begin, rest = given.page.read_text(encoding="utf-8").partition("<!-- faults -->\n")
        _, end, tail = rest.partition("<!-- /faults -->")
        given.page.write_text(head + begin + made + end + tail, encoding="utf-8")
    sys.exit(not all(map(right, found)))


if __name__ == "__main__":
    main()
