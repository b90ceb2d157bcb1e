"""The untouched base is a method: scored as the others are, with worked examples or without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import build
from tests.build import in_words, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import tokenize
from tsugiki.data.tasks import few_shots, load_task
from tsugiki.errors import ConfigError, DataError
from tsugiki.model.loading import load_tokenizer
from tsugiki.report.material import gather
from tsugiki.runs.finished import score_run
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, expand, parse_study
from tsugiki.study.sweep import run_study


def base(model: Path, task: Path, **changes: object) -> RunConfig:
    given = {"method": "base", "lora": None, "train": {"precision": "fp32"}, **changes}
    return run_config(model, task, **given)


def test_the_base_is_scored_and_nothing_is_trained(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = run_group([base(model_folder, task_file)], Store(tmp_path))[0]
    assert (record.status, record.outcome.steps, record.outcome.trainable) == ("done", 0, 0)
    assert not (record.folder / "weights").exists()
    scores = score_run(record, "test").scored("test")
    assert sum(scores.failures.values()) == scores.main.n == 9


def test_shots_are_training_rows_as_they_are_taught(model_folder: Path, task_file: Path) -> None:
    """Prompt, answer, EOS token; then the next, and at last the row's own prompt."""
    config = base(model_folder, task_file, shots=2)
    task, tokenizer = load_task(config.task), load_tokenizer(model_folder)
    shots = few_shots(task, 2, 0)
    assert shots == few_shots(task, 3, 0)[:2]
    assert shots != few_shots(task, 2, 1)
    rows = tokenize(tokenizer, task, task.examples["test"], 512, shots=shots)
    plain = tokenize(tokenizer, task, task.examples["test"], 512)
    taught = tokenize(tokenizer, task, shots, 512)
    before = [token for row in taught for token in (*row.prompt_ids, *row.target_ids)]
    for row, without in zip(rows, plain, strict=True):
        assert row.shots == 2
        assert row.prompt_ids == (*before, *without.prompt_ids)
        assert row.target_ids == without.target_ids


def test_what_has_no_room_is_left_out_whole_and_counted(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = base(model_folder, task_file, shots=4)
    task, tokenizer = load_task(config.task), load_tokenizer(model_folder)
    shots = few_shots(task, 4, 0)
    lengths = [len(row) for row in tokenize(tokenizer, task, shots, 512)]
    own = tokenize(tokenizer, task, task.examples["test"][:1], 512)[0]
    room = len(own.prompt_ids) + sum(lengths[:2]) + task.spec.max_new_tokens + 1
    row = tokenize(tokenizer, task, task.examples["test"][:1], room, shots=shots)[0]
    assert (row.shots, len(row.prompt_ids)) == (2, len(own.prompt_ids) + sum(lengths[:2]))
    narrow = {"precision": "fp32", "max_length": room}
    record = run_group([base(model_folder, task_file, shots=4, train=narrow)], Store(tmp_path))[0]
    assert any("have room for fewer than 4 shots" in note for note in record.outcome.notes)
    with pytest.raises(DataError, match="shots = 99, but it has"):
        few_shots(task, 99, 0)


def test_a_run_of_other_shots_is_another_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [base(model_folder, task_file, shots=shots) for shots in (0, 1)]
    folders = {run_group([config], Store(tmp_path))[0].folder for config in configs}
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"rank": 2}}, 'lora: method = "base" would ignore it'),
        ({"train": {"epochs": 2}}, "train.epochs: the untouched base does not read it"),
        ({"train": {"seed": 3}}, "train.seed: the untouched base does not read it"),
        ({"method": "lora", "adapter": "a", "train": {"seed": 3}}, "train.seed: an adapter that"),
        ({"method": "full", "shots": 2, "train": build.TRAIN}, 'shots: only method = "base"'),
    ],
)
def test_what_it_would_ignore_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        base(tmp_path, tmp_path, **change)


def test_the_seed_is_that_of_the_shots(model_folder: Path, task_file: Path) -> None:
    """What reads no seed keeps its run under any; an adapter from elsewhere has none."""
    given = study_of(model_folder, task_file)
    given["methods"] = [
        {"name": "base", "kind": "base", "shots": [0, 2]},
        {"name": "peft", "kind": "lora", "adapter": "folder"},
    ]
    cells = expand(parse_study({**given, "seeds": [7, 8]}, "study"))
    assert [cell.config.train.seed for cell in cells] == [0, 7, 0]


def test_a_study_has_a_row_for_each_number_of_shots(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = study_of(model_folder, task_file)
    given["methods"] = [given["methods"][0], {"name": "base", "kind": "base", "shots": [0, 2]}]
    study = parse_study(given, "study")
    assert [cell.method.name for cell in expand(study)][-2:] == ["base 0-shot", "base 2-shot"]
    result = run_study(study, Store(tmp_path))
    assert result.missing == {}
    material = gather(collect(study, Store(tmp_path)))
    rows = next(table for table in in_words(material) if table.name == "scores").rows
    named = [row[1] for row in rows]
    assert named[:3] == ["tiny-LoRA", "tiny-base 0-shot", "tiny-base 2-shot"]
    notes = " ".join(
        note for table in in_words(material) if table.name == "scores" for note in table.notes
    )
    assert "the base model as it is, not tuned, 2 worked examples before each prompt" in notes
    assert not [line for line in material.shortfalls("en") if "-shot" in line]
    for language in ("en", "ja"):
        assert len(material.statements(language)) == 1, "LoRA did not learn: once"


def test_a_tuned_method_is_compared_with_a_base_that_answers_nothing(tmp_path: Path) -> None:
    from tests.report.test_verdict import made, material

    here = material(*made(tmp_path, {"LoRA": [0.75], "base": [0.1]}))
    assert here.findings[0].verdict == "better"
    assert here.shortfalls("en") == []
    assert "trains" not in here.statements("en")[0]
    several = material(*made(tmp_path / "seeds", {"LoRA": [0.75, 0.7, 0.72], "base": [0.1]}))
    assert several.findings[0].comparison.seeds == 3
    assert "in this run" not in several.statements("en")[0]


def test_any_model_is_scored_from_the_command_line(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from tsugiki.cli import run_commands
    from tsugiki.cli.app import app

    assert run_commands.app is app
    given = ["score", "--model", str(model_folder), "--task", str(task_file), "--shots", "1"]
    given += ["--out", str(tmp_path), "--set", "train.precision=fp32", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)
    assert (scores["part"], scores["main"]["n"]) == ("test", 9)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    done = CliRunner().invoke(app, ["score", "--model", str(model_folder)])
    assert "name a run folder, or --model and --task" in str(done.exception)
