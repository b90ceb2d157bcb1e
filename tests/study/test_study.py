"""The main path on tiny models and real files: run, resume, score, study, tables, report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tsugiki
from tests import build
from tests.build import STUDY, TABLES, TRAIN, in_words, run_config, study_of
from tsugiki.cli.check import check_file
from tsugiki.cli.task_rows import show_task
from tsugiki.config.study import StudySpec
from tsugiki.errors import ConfigError, DataError, ModelError, RunError
from tsugiki.report.compare import compare_runs
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.finished import load_trained, score_run
from tsugiki.runs.reading import read_record
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, RunBusy, Store
from tsugiki.runs.use import answer_texts, export_run
from tsugiki.study.cells import collect, expand, parse_study
from tsugiki.study.sweep import run_study
from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_run_leaves_exactly_these_files_and_is_only_read_again(
    method: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    changes = {"method": "full", "lora": None} if method == "full" else {}
    config = run_config(model_folder, task_file, **changes)
    record = run_group([config], Store(tmp_path))[0]
    assert record.status == "done"
    names = {
        str(path.relative_to(record.folder)) for path in record.folder.rglob("*") if path.is_file()
    }
    assert names == {
        "config.json",
        "provenance.json",
        "outcome.json",
        "history.json",
        record.scored("validation").file,
        "weights/step-00000006/lane.safetensors",
        "weights/step-00000006/state.json",
    }
    scores = record.scored("validation")
    assert sum(scores.failures.values()) == scores.main.n == 9
    assert record.outcome.trainable == (
        2 * 2 * 2 * (32 + 32) - 2 * 2 * 16 if method == "lora" else record.outcome.total
    )
    before = {path: path.stat().st_mtime_ns for path in record.folder.rglob("*")}
    again = run_group([config], Store(tmp_path))[0]
    assert again.outcome == record.outcome
    assert before == {path: path.stat().st_mtime_ns for path in record.folder.rglob("*")}


def test_a_group_shares_its_base_and_each_member_equals_its_solo_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(model_folder, task_file, lora={"targets": targets, "rank": 2})
        for targets in ("q+v", "all-linear")
    ]
    together = run_group(configs, Store(tmp_path / "group"))
    for config, record in zip(configs, together, strict=True):
        solo = run_group([config], Store(tmp_path / "solo"))[0]
        assert record.answers("validation") == solo.answers("validation")
        paths = [latest_checkpoint(one.folder / "weights") for one in (record, solo)]
        tensors = [read_checkpoint(path)[0] for path in paths if path]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_the_kept_weights_give_the_same_answers(
    gpt2_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = run_group([run_config(gpt2_folder, task_file)], Store(tmp_path))[0]
    scored = score_run(record, "test")
    assert scored.scores("test") is not None
    os.remove(scored.folder / scored.scored("validation").file)
    Run(scored.folder).change(scores=(scored.scored("test"),))
    again = score_run(read_record(scored.folder), "validation")
    assert again.scored("validation").scores == record.scored("validation").scores


def test_scoring_on_training_data_is_refused(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="cut from the same rows as the training data"):
        run_group(
            [run_config(model_folder, task_file, task={"name": str(task_file), "split": "leaky"})],
            Store(tmp_path),
        )
    record = run_group([run_config(model_folder, task_file)], Store(tmp_path))[0]
    Run(record.folder).change(
        trained_on={"mine": next(iter(record.provenance.data["test"].values()))}
    )
    with pytest.raises(DataError, match="cut from the same rows as the training data"):
        score_run(read_record(record.folder), "test")


def test_a_diverged_run_is_recorded_as_failed_with_its_reason(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(
        model_folder, task_file, method="full", lora=None, train={**TRAIN, "learning_rate": 1e6}
    )
    record = run_group([config], Store(tmp_path))[0]
    assert record.status == "failed"
    assert "diverged" in record.outcome.reason
    with pytest.raises(RunError, match="this run failed"):
        score_run(record, "test")


def test_damage_is_named_not_guessed_at(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = run_group([run_config(model_folder, task_file)], Store(tmp_path))[0]
    path = latest_checkpoint(record.folder / "weights")
    assert path is not None
    (path / "lane.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match=r"lane\.safetensors: damaged or cut short"):
        load_trained(record)
    (record.folder / "outcome.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"outcome\.json: damaged or cut short"):
        read_record(record.folder)


def test_a_base_that_changed_is_refused(task_file: Path, tmp_path: Path) -> None:
    folder = build.save(tmp_path / "model")
    record = run_group([run_config(folder, task_file)], Store(tmp_path / "out"))[0]
    build.llama(seed=5).save_pretrained(folder)
    with pytest.raises(RunError, match="was trained over weights of sha256"):
        load_trained(record)


@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", "damaged or cut short"), ("gone", "no safetensors"), ("config", r"no config\.json")],
)
def test_a_broken_model_folder(damage: str, message: str, task_file: Path, tmp_path: Path) -> None:
    folder = build.save(tmp_path / "model")
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.rename(folder / "pytorch_model.bin")
    else:
        (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=message):
        run_group([run_config(folder, task_file)], Store(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_row_longer_than_the_model_is_refused(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    train = task_file.parent / "train.jsonl"
    train.write_text(
        train.read_text(encoding="utf-8").replace("犬が公園", "犬が公園" * 60, 1), encoding="utf-8"
    )
    with pytest.raises(DataError, match="prompt tokens, but 128 less the answer leave"):
        run_group([run_config(model_folder, task_file)], Store(tmp_path / "out"))
    assert not (tmp_path / "out" / "runs").exists(), "nothing half-written"


def test_a_folder_that_cannot_be_made_is_one_line(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be made"):
        run_group([run_config(model_folder, task_file)], Store(tmp_path / "file"))


def test_a_study_chooses_by_validation_scores_test_once_and_resumes(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = parse_study(study_of(model_folder, task_file), "study")
    store = Store(tmp_path)
    result = run_study(study, store)
    assert len(result.cells) == 4
    assert set(result.chosen) == {("tiny", "tiny", "LoRA"), ("tiny", "tiny", "FT")}
    tested = [record for record in store.records() if record.scores("test")]
    assert len(tested) == 2
    for key, cell in result.chosen.items():
        best = max(
            result.records[c.label].main_score("validation")
            for c in result.cells
            if c.key == key and result.records[c.label].status == "done"
        )
        assert result.records[cell.label].main_score("validation") == best
    page = write_report(gather(result), tmp_path)
    tables = in_words(gather(result))
    text = page.read_text(encoding="utf-8")
    assert [table.name for table in tables] == [*TABLES, "answers-1", "data", "provenance"]
    assert "diverged" in text
    assert "compared configurations differ in batch: LoRA 8, FT 16" in text
    assert "at most 128 tokens" in text, "the model has 128 positions"
    assert "| tiny | majority |" in text
    solo = result.records[result.chosen["tiny", "tiny", "FT"].label].outcome.exclusive_cost
    assert set(solo) == {8, 16}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    run_study(study, store)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert collect(study, store).chosen.keys() == result.chosen.keys()
    with (page.parent / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "task"
    assert {len(row) for row in rows} == {len(rows[0])}


def test_a_study_drops_only_the_weights_of_its_own_losing_cells(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    grid = {"learning_rate": [1e-3, 1e-5], "batch": [16]}
    given = {
        **study_of(model_folder, task_file),
        "methods": [{"name": "FT", "kind": "full", "grid": grid}],
    }
    study = parse_study(given, "study")
    mine = run_group([expand(study)[1].config], Store(tmp_path))[0]
    run_study(study, Store(tmp_path))
    assert (mine.folder / "weights").exists(), "the user's own run"
    fresh = run_study(study, Store(tmp_path / "fresh"))
    kept = [cell for cell in fresh.cells if (fresh.records[cell.label].folder / "weights").exists()]
    assert kept == list(fresh.chosen.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grid": {"learning_rat": [1]}},
            r'grid has no "learning_rat". Did you mean "learning_rate"',
        ),
        ({"grid": {"learning_rate": []}}, r"grid.learning_rate is empty"),
        ({"grid": {"learning_rate": ["fast"]}}, "learning_rate.*fast"),
        ({"grid": {"learning_rate": [1e-3, 1e-3]}}, "two configurations are called"),
        ({"tasks": ["jnly"], "grid": {"learning_rate": [1e-3]}}, r'tasks names "jnly"'),
        ({"kind": "full", "grid": {"learning_rate": [1e-3], "rank": [2]}}, 'grid has no "rank"'),
    ],
)
def test_a_wrong_study_is_one_clear_line(change: dict, message: str) -> None:
    study = {
        **STUDY,
        "models": [{"path": "builtin"}],
        "tasks": [{"name": "jnli"}],
        "methods": [{"name": "LoRA", "kind": "lora", **change}],
    }
    with pytest.raises(ConfigError, match=message):
        expand(parse_study(study, "study"))


def test_a_trained_run_answers_own_text_and_exports(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = run_group([run_config(model_folder, task_file)], Store(tmp_path))[0]
    answers = answer_texts(record, ["文1: 犬[SEP]文2: 猫[SEP]", "空"], max_new_tokens=3)
    assert len(answers) == 2
    export_run(record, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "tsugiki.json",
    }
    with pytest.raises(ModelError, match="tokens; from 1 to"):
        answer_texts(record, ["空" * 200], max_new_tokens=3)
    full = run_group(
        [run_config(model_folder, task_file, method="full", lora=None)], Store(tmp_path)
    )[0]
    with pytest.raises(ModelError, match="no adapter to export"):
        export_run(full, tmp_path / "other")


def test_two_runs_are_compared_answer_by_answer(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(model_folder, task_file, lora={"targets": targets, "rank": 2})
        for targets in ("q+v", "all-linear")
    ]
    first, second = run_group(configs, Store(tmp_path))
    found = compare_runs(first, second, "validation")
    assert found.n == 9
    assert found.first == first.main_score("validation")
    assert found.low <= found.difference <= found.high
    answers = [record.answers("validation") for record in (first, second)]
    assert len(found.changed) == sum(a.answer != b.answer for a, b in zip(*answers, strict=True))
    with pytest.raises(RunError, match="was not scored on test"):
        compare_runs(first, second, "test")
    for arguments in (
        ["ls", "--out", str(tmp_path)],
        ["show", str(first.folder)],
        ["compare", str(first.folder), str(second.folder), "--part", "validation"],
    ):
        for form in ([], ["--json"]):
            done = subprocess.run(
                [sys.executable, "-m", "tsugiki", *arguments, *form], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert not form or json.loads(done.stdout)


def test_tokens_are_shown_with_their_loss_mask(model_folder: Path, task_file: Path) -> None:
    from tsugiki.config.run import TaskChoice

    lines = list(show_task(TaskChoice(name=str(task_file)), "train", 1, str(model_folder)))
    ids, loss = (
        next(line for line in lines if line.startswith(f"  {word}")).split()[1:]
        for word in ("ids", "loss")
    )
    assert len(ids) == len(loss)
    assert loss[-1] == "x"
    assert ids[-1] == "2"


def test_check_reads_a_file_and_all_it_names(task_file: Path, tmp_path: Path) -> None:
    assert list(check_file(task_file))[-1] == "ok"
    bad = tmp_path / "bad.toml"
    bad.write_text(
        task_file.read_text(encoding="utf-8")
        .replace("{a}", "{aa}")
        .replace('path = "', f'path = "{task_file.parent}/'),
        encoding="utf-8",
    )
    with pytest.raises(DataError, match='no field "aa"'):
        list(check_file(bad))


def test_python_entry_points(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    record = tsugiki.run(
        {"model": {"path": str(model_folder)}, "task": {"name": str(task_file)}, "train": TRAIN},
        out=tmp_path,
    )
    assert record.main_score("validation") is not None


@pytest.mark.slow
def test_kill_9_in_the_middle_resumes_to_the_same_bits(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """A real process, killed for real once its first checkpoint is there."""
    config = {
        "model": {"path": str(model_folder), "name": "tiny"},
        "task": {"name": str(task_file)},
        "train": {**TRAIN, "epochs": 60},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import tsugiki.train.engine as engine; "
        "engine.CHECKPOINT_EVERY_S = 0.0\n"
        "engine.fit.__kwdefaults__['checkpoint_every_s'] = 0.0\n"
        "import tsugiki; print(tsugiki.run(json.loads(Path(sys.argv[1]).read_text()), "
        "out=sys.argv[2]).folder)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "killed").rglob("step-*/state.json")) and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run_folder = next((tmp_path / "killed" / "runs").iterdir())
    assert read_record(run_folder).status == "running", "it was killed before its end"
    with Run(run_folder).lock():
        pass  # a dead process holds nothing
    folders = [
        Path(
            subprocess.run(
                [*command, str(tmp_path / name)], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
        for name in ("killed", "whole")
    ]
    weights = [
        read_checkpoint(path)[0]
        for folder in folders
        if (path := latest_checkpoint(folder / "weights"))
    ]
    assert len(weights) == 2
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    losses = [
        json.loads((folder / "history.json").read_text(encoding="utf-8"))["loss"]
        for folder in folders
    ]
    assert losses[0] == losses[1]


def test_what_changes_an_answer_changes_the_run(task_file: Path, tmp_path: Path) -> None:
    folder = build.save(tmp_path / "model")
    store = Store(tmp_path / "out")
    names = {run_group([run_config(folder, task_file)], store)[0].folder.name}
    text = task_file.read_text(encoding="utf-8")
    for change in (("[SEP]文2", " 文2"), ("含意", "田園")):
        task_file.write_text(text.replace(*change), encoding="utf-8")
        names.add(run_group([run_config(folder, task_file)], store)[0].folder.name)
    task_file.write_text(text.replace('title = "tiny"', 'title = "other"'), encoding="utf-8")
    names.add(run_group([run_config(folder, task_file)], store)[0].folder.name)
    assert len(names) == 3, "a title changes nothing"
    task_file.write_text(text.replace("max_new_tokens = 6", "max_new_tokens = 5"), encoding="utf-8")
    [shorter] = run_group([run_config(folder, task_file)], store)
    assert shorter.folder.name in names, "how long an answer may be changes its scores alone"
    assert [one.key.max_new_tokens for one in shorter.outcome.scores if one.key] == [6, 5]
    assert shorter.scored("validation").key.max_new_tokens == 5
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    names.add(run_group([run_config(folder, task_file)], store)[0].folder.name)
    assert len(names) == 4


def test_a_cell_that_lost_and_was_dropped_is_trained_again_when_it_is_chosen(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    def study(rates: list[float]) -> StudySpec:
        return parse_study(
            {
                **study_of(model_folder, task_file),
                "methods": [{"name": "FT", "kind": "full", "grid": {"learning_rate": rates}}],
            },
            "study",
        )

    wide = run_study(study([1e-3, 1e-5]), Store(tmp_path))
    loser = next(cell for cell in wide.cells if cell not in wide.chosen.values())
    narrow = run_study(study([loser.config.train.learning_rate]), Store(tmp_path))
    record = narrow.records[loser.label]
    assert record.scores("test") is not None
    assert (
        record.scored("validation").scores == wide.records[loser.label].scored("validation").scores
    )


def test_a_full_disk_is_no_failed_run(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = run_config(model_folder, task_file), Store(tmp_path)
    from tsugiki.train import engine

    real = engine.save_checkpoint

    def full(*arguments: object, **named: object) -> Path:
        raise RunError("checkpoint cannot be written")

    monkeypatch.setattr(engine, "save_checkpoint", full)
    monkeypatch.setitem(engine.fit.__kwdefaults__, "checkpoint_every_s", 0.0)
    with pytest.raises(RunError, match="cannot be written"):
        run_group([config], store)
    monkeypatch.setattr(engine, "save_checkpoint", real)
    assert run_group([config], store)[0].status == "done"


def test_a_run_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "x")
    code = (
        "import sys; from pathlib import Path; from tsugiki.runs.store import Run, RunBusy\n"
        "try:\n    Run(Path(sys.argv[1])).lock().__enter__(); print('held')\n"
        "except RunBusy: print('busy')"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with run.lock():
        assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "busy"
        with pytest.raises(RunBusy), run.lock():
            pass
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "held"


def shorten(path: Path) -> None:
    """Leaves the first five rows."""
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:5]
    path.write_text("".join(kept), encoding="utf-8")


def test_data_that_changed_since_training_is_not_scored_under_the_old_name(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = parse_study(study_of(model_folder, task_file), "study")
    result = run_study(study, Store(tmp_path))
    chosen = next(iter(result.chosen.values()))
    before = result.records[chosen.label].scored("test")
    shorten(task_file.parent / "test.jsonl")
    today = collect(study, Store(tmp_path))
    assert len(today.records) == 4, "they were trained on the same rows"
    assert all(record.scores("test") is None for record in today.records.values())
    again = score_run(today.records[chosen.label], "test").scored("test")
    assert (before.main.n, again.main.n) == (9, 5)
    assert before.file != again.file, "both are kept"
    shorten(task_file.parent / "train.jsonl")
    assert not collect(study, Store(tmp_path)).records, "yesterday's records are of other data"
    record = next(
        record
        for label, record in result.records.items()
        if record.status == "done" and label not in {one.label for one in result.chosen.values()}
    )
    with pytest.raises(RunError, match="its data changed since this run was trained"):
        score_run(record, "test")


def test_check_finds_what_a_run_would(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    text = (
        f'[model]\npath = "{model_folder}"\n[task]\nname = "{task_file}"\n[lora]\ntargets = '
        '"q+v"\n[train]\nlearning_rate = 1e-3\n'
    )
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert list(check_file(path))[-1] == "ok"
    path.write_text(text.replace("q+v", "q+w"), encoding="utf-8")
    with pytest.raises(ModelError, match='has no "w"'):
        list(check_file(path))
    path.write_text(text + "max_length = 20\n", encoding="utf-8")
    with pytest.raises(DataError, match="prompt tokens, but 20 less the answer leave"):
        list(check_file(path))


@pytest.mark.slow
def test_cells_side_by_side_give_the_same_choice(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """`--jobs 2`: two workers share the cells; the chosen cells are timed again, alone."""
    lines = [
        'name = "tiny"\n[train]\nepochs = 2\nprecision = "fp32"\n',
        f'[[models]]\npath = "{model_folder}"\nname = "tiny"\n[[tasks]]\nname = "{task_file}"\n',
        '[[methods]]\nname = "LoRA"\nkind = "lora"\n[methods.grid]\nlearning_rate = [1e-3, '
        "1e-2]\nrank = [2]\n",
        '[[methods]]\nname = "FT"\nkind = "full"\n[methods.grid]\nlearning_rate = [1e-3, 1e-5]\n',
    ]
    (tmp_path / "study.toml").write_text("".join(lines), encoding="utf-8")
    outputs = {}
    for jobs in ("1", "2"):
        command = [
            sys.executable,
            "-m",
            "tsugiki",
            "study",
            str(tmp_path / "study.toml"),
            "--out",
            str(tmp_path / jobs),
            "--jobs",
            jobs,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr  # nine rows teach nothing
        records = Store(tmp_path / jobs).records()
        outputs[jobs] = {str(record.config): record.main_score("validation") for record in records}
        tested = [record for record in records if record.scores("test")]
        assert len(tested) == 2
        assert all(record.outcome.exclusive == (jobs == "1") for record in records)
        assert all(8 in record.outcome.exclusive_cost for record in tested)
    assert outputs["1"] == outputs["2"]
