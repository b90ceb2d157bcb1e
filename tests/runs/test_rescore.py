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
from tsugiki.runs.answer_modes import answer_modes
from tsugiki.runs.finished import score_run
from tsugiki.runs.reading import read_record
from tsugiki.runs.rescore import rescore
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store

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
