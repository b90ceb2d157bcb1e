"""A study always ends in a report: what goes wrong with one configuration is its reason, and
everything else is run. More: campaign/faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests import build
from tests.build import run_config, study_of
from tsugiki import files
from tsugiki.cli import commands as cli
from tsugiki.config.run import RunConfig
from tsugiki.errors import ModelError, RunError
from tsugiki.runs import group as run_module
from tsugiki.runs import methods
from tsugiki.runs.events import Events
from tsugiki.runs.reading import read_record
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store
from tsugiki.study import sweep
from tsugiki.study.cells import collect, parse_study
from tsugiki.study.sweep import run_study
from tsugiki.train import memory
from tsugiki.train.checkpoint import (
    LaneState,
    checkpoints,
    drop_older_checkpoints,
    latest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from tsugiki.train.ledger import Ledger

GIB = 2**30


def command(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["tsugiki", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def study_file(folder: Path, model: Path, task: Path, *, epochs: int = 1, rest: str = "") -> Path:
    path = folder / "study.toml"
    lines = [
        f'name = "s"\n{rest}\n[train]\nepochs = {epochs}\nprecision = "fp32"\n[[models]]\npath = '
        f'"{model}"\nname = "tiny"\n[[tasks]]\nname = "{task}"\n'
    ]
    lines.append(
        '[[methods]]\nname = "LoRA"\nkind = "lora"\n[methods.grid]\nrank = [2]\nlearning_rate = '
        "[1e-3, 5e-3]\n"
    )
    lines.append(
        '[[methods]]\nname = "FT"\nkind = "full"\n[methods.grid]\nlearning_rate = [1e-3, 2e-3]\n'
    )
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_full_fine_tuning_without_room_leaves_loras_score_and_exit_code_3(
    model_folder: Path,
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recommended study on a small card had ended in exit code 2 and no page."""
    path = study_file(tmp_path, model_folder, task_file)
    monkeypatch.setattr(memory, "room", lambda device: (100_000, 24 * GIB))
    arguments = ["study", str(path), "--out", str(tmp_path / "out")]
    assert command(arguments, monkeypatch) == 3
    out, said = capsys.readouterr()
    assert said.index(
        "left out: tiny · tiny · FT · learning_rate 0.001 and 1 more: full fine-tuning needs"
    ) < said.index("LoRA"), "before the first cell"
    assert (
        "no result: full fine-tuning needs 0.0 GiB on cpu (0 M parameters with what AdamW keeps, "
        "16 bytes each), 0.0 free" in out
    )
    assert out.splitlines()[-1].endswith(f"by: tsugiki study {path} --out {tmp_path / 'out'}")
    assert [
        record.scores("test") is not None
        for record in Store(tmp_path / "out").records()
        if record.config.method == "lora"
    ].count(True) == 1
    assert command(["report", *arguments[1:]], monkeypatch) == 3, "the reason is kept"
    assert "full fine-tuning needs" in capsys.readouterr().out
    monkeypatch.undo()
    result = run_study(
        collect(
            parse_study(json.loads(json.dumps(given_of(path))), "s"), Store(tmp_path / "out")
        ).study,
        Store(tmp_path / "out"),
    )
    assert result.missing == {}
    assert {key[2] for key in result.chosen} == {"LoRA", "FT"}


def given_of(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_what_nothing_can_be_made_of_is_refused_in_one_line(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (broken / "tokenizer.json").write_text("{", encoding="utf-8")
    notes: list[str] = []
    with pytest.raises(ModelError, match="tokenizer"):
        run_study(
            parse_study(study_of(broken, task_file), "study"),
            Store(tmp_path / "out"),
            Events(on_note=notes.append),
        )
    assert notes == []


def test_one_lane_that_cannot_be_written_does_not_take_the_others(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is halved until the culprit is alone."""
    configs = [
        run_config(model_folder, task_file, lora={"targets": "q+v", "rank": rank})
        for rank in (1, 2, 3, 4)
    ]
    real = methods.LORA.lanes

    def make_lanes(base: Any, some: Sequence[RunConfig], rows: int) -> Any:
        if any(one.lora is not None and one.lora.rank == 3 for one in some):
            raise OSError(28, "No space left on device", "weights")
        return real(base, some, rows)

    monkeypatch.setattr(methods.LORA, "lanes", make_lanes)
    faults: dict[RunConfig, str] = {}
    records = run_group(configs, Store(tmp_path), lanes=4, faults=faults)
    assert [record.config.lora.rank for record in records] == [1, 2, 4]
    assert {record.status for record in records} == {"done"}
    assert faults == {configs[2]: "weights: No space left on device"}
    with pytest.raises(OSError, match="No space left"):
        run_group(configs[2:3], Store(tmp_path / "other"))


def test_advice_names_what_helps_there(
    model_folder: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki.model.loading import find_base

    model, cpu = build.llama(), torch.device("cpu")
    full = run_config(model_folder, task_file, method="full", lora=None)
    numerics = find_base(full.model, "full", "fp32").numerics
    size = 16 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(memory, "room", lambda device: (size, size))

    def helps() -> str:
        held = Ledger(weights=size / 4, moments=size / 2, gradients=size / 4, activations=size / 8)
        return memory.what_helps(held, "LoRA, a smaller model or more memory", full.train, cpu)

    assert "Fewer rows do not help: take LoRA" in helps()
    assert helps().startswith("AdamW's moments take ")
    monkeypatch.setattr(memory, "room", lambda device: (20 * size, 20 * size))
    assert (
        "Lower train.micro_batch (now 8 rows a backward pass) or train.max_length (now 2,048)"
        in helps()
    )
    monkeypatch.setattr(memory, "room", lambda device: (20 * size, 40 * size))
    assert "other programs hold" in helps()
    monkeypatch.setattr(memory, "room", lambda device: (22 * GIB, 24 * GIB))
    bf16 = type(numerics)(compute="bf16", base="fp32", trained="fp32 (bf16 + int16)")
    cuda = torch.device("cuda")
    for millions, needs, advice in (
        (2870, 32, 'Write moments = "8bit" under '),
        (2120, 24, 'Write moments = "bf16" under '),
        (7000, 78, "do not help. Take LoRA, a smaller"),
    ):
        said = (
            rf"full fine-tuning needs {needs} GiB on cuda \({millions:,} M parameters .* 12 bytes "
            rf"each\), 22 free.* {advice}"
        )
        with pytest.raises(RunError, match=said):
            memory.refuse_no_room(millions * 1_000_000, full.train, bf16, cuda)
    cut = full.train.model_copy(update={"batch": 8, "micro_batch": 4})
    with pytest.raises(RunError, match=r"8bit.* GiB, without micro_batch"):
        memory.refuse_no_room(2_870_000_000, cut, bf16, cuda)
    memory.refuse_no_room(1_870_000_000, full.train, bf16, cuda)


def test_a_search_that_learns_ends_where_a_trial_cannot_be_had(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    method = {
        "name": "LoRA",
        "kind": "lora",
        "search": {"kind": "tpe", "trials": 6, "rounds": 3},
        "grid": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    }
    real = run_module.fit
    made = []

    def fit(step: Any, lanes: Any, *others: Any, **named: Any) -> Any:
        made.append(lanes[0].name)
        if len(made) == 2:
            raise RuntimeError("gone")
        return real(step, lanes, *others, **named)

    monkeypatch.setattr(run_module, "fit", fit)
    result = run_study(
        parse_study({**study_of(model_folder, task_file), "methods": [method]}, "study"),
        Store(tmp_path),
    )
    assert list(result.missing.values()) == ["RuntimeError: gone"]
    assert len(result.chosen) == 1


def test_a_choice_that_cannot_be_trained_again_keeps_its_score(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = parse_study(study_of(model_folder, task_file), "study"), Store(tmp_path)
    configs = [cell.config for cell in sweep.expand(study) if cell.method.name == "FT"]
    for record in [run_group([config], store)[0] for config in configs]:
        shutil.rmtree(record.folder / "weights", ignore_errors=True)
    before = {record.folder.name: record.outcome.scores for record in store.records()}
    real = run_module.fit

    def fit(step: Any, lanes: Any, *others: Any, **named: Any) -> Any:
        if not lanes[0].moves.keeps_gradients:
            raise RuntimeError("no luck today")
        return real(step, lanes, *others, **named)

    monkeypatch.setattr(run_module, "fit", fit)
    result = run_study(study, store)
    [(label, reason)] = result.missing.items()
    assert label.endswith("· test")
    assert reason == "RuntimeError: no luck today"
    for name, evaluations in before.items():
        assert read_record(store.root / "runs" / name).outcome.scores == evaluations
        if evaluations:
            assert read_record(store.root / "runs" / name).answers("validation")


# ---- checkpoints --------------------------------------------------------------------------------


def test_a_kill_while_an_older_checkpoint_is_removed_does_not_block_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had left a folder without its state: “checkpoint cannot be read”, for ever."""
    tensors = {"a": torch.zeros(2)}
    save_checkpoint(tmp_path, 3, tensors, LaneState(steps_with_lr=1), keep=True)
    save_checkpoint(tmp_path, 5, tensors, LaneState(steps_with_lr=2), keep=True)

    def killed(path: Path, **named: Any) -> None:
        (Path(path) / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            drop_older_checkpoints(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005"]
    drop_older_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    (tmp_path / "step-00000003").mkdir()  # as earlier versions left it
    (tmp_path / "step-00000003" / "lane.safetensors").write_bytes(b"half")
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert read_checkpoint(latest)[1].steps_with_lr == 2
    drop_older_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    (tmp_path / "step-00000005" / "state.json").unlink()
    with pytest.raises(RunError, match="checkpoint cannot be read"):
        read_checkpoint(tmp_path / "step-00000005")


def test_a_run_goes_on_over_a_folder_without_a_state(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = run_config(model_folder, task_file), Store(tmp_path)
    whole = run_group([config], Store(tmp_path / "whole"))[0]
    from tsugiki.train import engine
    from tsugiki.train.step import EagerStep

    step = EagerStep.__call__

    def killed(self: EagerStep, lanes: list[Any]) -> Any:
        if lanes[0].step == 4:
            raise KeyboardInterrupt
        return step(self, lanes)

    with monkeypatch.context() as patched:
        patched.setitem(engine.fit.__kwdefaults__, "checkpoint_every_s", 0.0)
        patched.setattr(EagerStep, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run_group([config], store)
    [record] = store.records()
    (record.folder / "checkpoint" / "step-00000000").mkdir()
    assert run_group([config], store)[0].answers("validation") == whole.answers("validation")


# ---- workers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_study_ends_its_workers_and_the_same_command_goes_on(
    how: signal.Signals, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, model_folder, task_file, epochs=400)
    arguments = [
        sys.executable,
        "-m",
        "tsugiki",
        "study",
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--jobs",
        "2",
    ]
    # A shell starts its background jobs deaf to Ctrl-C, and children inherit that: the study under
    # test must hear it.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(arguments, **quiet, preexec_fn=heard)  # noqa: PLW1509
    until = time.monotonic() + 60
    while time.monotonic() < until and not list((tmp_path / "out" / "runs").glob("*/outcome.json")):
        time.sleep(0.1)
    workers = psutil.Process(started.pid).children()
    assert len(workers) == 2
    os.kill(started.pid, how)
    started.wait(timeout=30)
    # At once.
    again = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "workers live on"
    out = again.communicate(timeout=200)[0]
    assert again.returncode in (0, 3), out
    assert "another process" not in out
    records = Store(tmp_path / "out").records()
    assert [record.status for record in records] == ["done"] * 4


def test_loss_on_validation_is_that_of_the_answers(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """One number for each lane: the mean of -log p over the target tokens of validation, as
    training computes its loss."""
    from tsugiki.data.batch import collate
    from tsugiki.data.tasks import load_task
    from tsugiki.model.loading import backbone_and_head
    from tsugiki.runs.finished import load_trained
    from tsugiki.runs.inputs import tokens_of
    from tsugiki.train.loss import summed_losses

    configs = [
        run_config(model_folder, task_file, lora={"targets": targets, "rank": 2})
        for targets in ("q+v", "all-linear")
    ]
    for record in run_group(configs, Store(tmp_path), lanes=2):
        base = load_trained(record)
        rows = tokens_of(base, load_task(record.config.task), record.config, "validation")
        backbone, head = backbone_and_head(base.model)
        with torch.no_grad():
            total = summed_losses(
                backbone, head, collate(rows, list(range(len(rows))), 3), [len(rows)]
            ).item()
        assert record.outcome.validation_loss == pytest.approx(
            total / sum(len(row.target_ids) for row in rows), rel=1e-4
        )


def test_a_run_put_back_is_as_before(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    record = run_group([run_config(model_folder, task_file)], Store(tmp_path))[0]
    run = Run(record.folder)
    before = {path.name: path.read_bytes() for path in record.folder.iterdir() if path.is_file()}
    kept = run.start_over()
    assert run.status == "running"
    run.put_back(kept)
    assert {
        path.name: path.read_bytes() for path in record.folder.iterdir() if path.is_file()
    } == before
