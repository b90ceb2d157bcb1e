"""Kept answers by other rules and other labels: no model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import build
from tests.build import run_config
from tsugiki.errors import RunError
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.answer_modes import answer_modes
from tsugiki.runs.finished import score_run
from tsugiki.runs.reading import read_record
from tsugiki.runs.rescore import rescore
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.score.class_scores import class_scores
from tsugiki.study.cells import collect, parse_study
from tsugiki.study.sweep import run_study

pytestmark = pytest.mark.precision


def versioned(folder: Path) -> Path:
    """The tiny task with two versions of its test labels: the first row is relabelled in version
    1."""
    path = build.save_task(folder)
    text = path.read_text(encoding="utf-8").replace('[files.test]\npath = "test.jsonl"\n', "")
    text = text.replace(
        'default_split = "standard"\n',
        'default_split = "standard"\nid = "number"\ndefault_version = "2"\n',
    ).split("[splits.leaky]")[0]
    text += '[versions."1".test]\npath = "test1.jsonl"\n[versions."2".test]\npath = "test.jsonl"\n'
    path.write_text(text, encoding="utf-8")
    for part in ("train", "validation", "test"):
        rows = [
            json.loads(line)
            for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        rows = [{**row, "number": f"{part}{number}"} for number, row in enumerate(rows)]
        (folder / f"{part}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        if part == "test":
            rows[0]["label"] = "n" if rows[0]["label"] != "n" else "c"
            (folder / "test1.jsonl").write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
                encoding="utf-8",
            )
    return path


def test_a_run_is_scored_by_every_rule_and_both_versions_of_the_labels(
    model_folder: Path, tmp_path: Path
) -> None:
    [record] = run_group([run_config(model_folder, versioned(tmp_path / "task"))], Store(tmp_path))
    with pytest.raises(RunError, match=r"was not scored on test\. Run: tsugiki score"):
        rescore(record, "test", "all")
    record = score_run(record, "test")
    answers = [answer.model_dump() for answer in record.answers("test")]
    answers[0]["answer"] = f" {answers[0]['target']}\n"
    (record.folder / record.scored("test").file).write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers), encoding="utf-8"
    )
    rows = rescore(record, "test", "all")
    found = {(row.rule, row.labels, row.score): row.value for row in rows}
    assert {row.labels for row in rows} == {"v2", "v1"}
    assert found["tsugiki", "v2", "exact_match"] - found[
        "flexeval", "v2", "exact_match"
    ] == pytest.approx(1 / 9), "the spaces"
    assert found["tsugiki", "v2", "exact_match"] - found[
        "tsugiki", "v1", "exact_match"
    ] == pytest.approx(1 / 9), "the new label"
    assert ("tsugiki", "v2", "macro_f1") in found
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "score", str(record.folder), "--rules", "all"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "llm-jp-eval" in done.stdout
    assert "balanced_accuracy" in done.stdout


def test_three_scores_from_one_checkpoint(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    [record] = run_group([run_config(model_folder, task_file)], Store(tmp_path))
    rows = answer_modes(record, "test")
    assert [row.mode for row in rows] == ["free", "sum", "per_char", "constrained"]
    kept = json.loads((record.folder / "answer-modes-test.json").read_text(encoding="utf-8"))
    assert set(kept["constrained"]) <= {"含意", "中立", "矛盾"}
    (record.folder / "weights").rename(record.folder / "gone")
    assert answer_modes(read_record(record.folder), "test") == rows, "kept choices need no weights"
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "score", str(record.folder), "--ways"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "McNemar p" in done.stdout


def test_a_rule_that_knows_labels_says_how_many_answers_are_none(
    model_folder: Path, tmp_path: Path
) -> None:
    task = build.save_task(tmp_path / "task")
    [record] = run_group([run_config(model_folder, task)], Store(tmp_path))
    record = score_run(record, "test")
    rows = {(row.rule, row.score): row for row in rescore(record, "test", "all")}
    assert [rule for rule, score in rows if score == "out_of_label"] == ["llm-jp-eval-2"]
    outside = [
        answer.answer.split("\n", maxsplit=1)[0].strip() not in ("含意", "矛盾", "中立")
        for answer in record.answers("test")
    ]
    assert rows["llm-jp-eval-2", "out_of_label"].value == sum(outside) / len(outside)


@pytest.mark.parametrize("metric", ["macro_f1", "mcc"])
def test_a_score_of_the_whole_chooses_and_is_compared(
    metric: str, model_folder: Path, tmp_path: Path
) -> None:
    """From the task file to the report: a choice, a baseline, an interval, a difference."""
    task = build.save_task(tmp_path / "task")
    text = task.read_text(encoding="utf-8").replace('metric = "accuracy"', f'metric = "{metric}"')
    task.write_text(text, encoding="utf-8")
    study = parse_study(build.study_of(model_folder, task), "study")
    run_study(study, Store(tmp_path))
    material = gather(collect(study, Store(tmp_path)))
    [standing] = [each for key, each in material.standings.items() if key[2] == "LoRA"]
    assert standing.floor is not None
    scores = standing.runs[0].scored("test")
    assert scores.main.name == metric
    assert scores.main.low <= scores.main.value <= scores.main.high
    answers = standing.runs[0].answers("test")
    theirs = class_scores(
        [row.answer for row in answers], [row.target for row in answers], ["含意", "矛盾", "中立"]
    )
    assert scores.main.value == pytest.approx(theirs[metric])
    assert scores.values["accuracy"] == pytest.approx(
        sum(row.failure.startswith("right") for row in answers) / len(answers)
    )
    [modes] = [row for row in answer_modes(standing.runs[0], "test") if row.mode == "sum"]
    assert modes.p is None, "McNemar's test is of answers that are right or wrong"
    write_report(material, tmp_path)
