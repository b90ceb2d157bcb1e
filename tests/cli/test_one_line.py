"""From a table to a report in one line, and what is written on the way."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.test_cli import in_this_process
from tests.cli.test_next_command import next_command
from tsugiki.cli.one_line import study_text
from tsugiki.config.recipe import rate_of
from tsugiki.model.folder import BUILTIN
from tsugiki.study.cells import expand, parse_study

GOOD = ["とても使いやすい", "色がきれいで満足", "軽くて便利", "買ってよかった", "音が静か"]
BAD = ["すぐに壊れた", "音がうるさい", "二日で動かなくなった", "思ったより重い", "返品したい"]


def reviews(folder: Path, rows: int = 600, encoding: str = "cp932") -> Path:
    lines = ["番号,本文,星"]
    for n in range(rows):
        words = GOOD if n % 2 else BAD
        lines.append(f"{n},{words[n // 2 % 5]}。{n}番目の注文です,{'良い' if n % 2 else '悪い'}")
    path = folder / "reviews.csv"
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    reviews(tmp_path)
    return tmp_path


def test_a_table_is_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = in_this_process(monkeypatch, "check", "reviews.csv")
    assert done.returncode == 0
    for said in ("600 rows, columns 番号, 本文, 星", "CP932", "2 labels: 悪い, 良い); from: 本文"):
        assert said in done.stdout
    assert "split: about 480 rows for training, 60 for validation, 60 for test" in done.stdout
    assert "enough? 60 rows of test show differences of about 20 points or more" in done.stdout
    assert "one of 2, the margin, takes about 6,0" in done.stdout
    assert "Next: tsugiki study --model builtin --task reviews.csv" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["reviews.csv"], "nothing is written"


def test_whether_rows_suffice_is_said_in_japanese_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of labels follows the power that a study plans with (z of 95 % and of 80 %)."""
    reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = in_this_process(monkeypatch, "check", "reviews.csv", "--lang", "ja")
    for said in (
        "600 行、列は 番号, 本文, 星",
        "分割: 学習に約 480 行、検証に約 60 行、テストに約 60 行",
        "検出できるのは、2 つの実行の約 20 ポイント以上の差です",
    ):
        assert said in done.stdout
    assert round(100 * (1.96 + 0.8416) * (0.3 / 60) ** 0.5) == 20
    assert not re.search("[a-z] (rows|answer)", done.stdout)


@pytest.mark.parametrize(
    ("rows", "said"),
    [(5, "too few rows to be split"), (10, "split: about 8 rows"), (70_000, "enough: 7,000 rows")],
)
def test_few_rows_and_many(
    rows: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(tmp_path, rows)
    done = in_this_process(monkeypatch, "check", "reviews.csv", "--lang", "en", cwd=tmp_path)
    assert said in done.stdout
    assert ("split: " in done.stdout) == (rows >= 10)


def test_a_task_file_is_written_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = in_this_process(monkeypatch, "tasks", "new", "reviews.csv")
    assert done.returncode == 0
    assert "Next: tsugiki check reviews.toml" in done.stdout
    before = (folder / "reviews.toml").read_bytes()
    again = in_this_process(monkeypatch, "tasks", "new", "reviews.csv")
    assert again.returncode == 2
    assert "reviews.toml: is there already" in again.stderr
    assert (folder / "reviews.toml").read_bytes() == before
    other = in_this_process(
        monkeypatch, "tasks", "new", "reviews.csv", "--target", "本文", "--fields", "星",
        "--to", "back.toml",
    )  # fmt: skip
    assert other.returncode == 0
    assert tomllib.loads((folder / "back.toml").read_text(encoding="utf-8"))["target"] == "本文"
    checked = in_this_process(monkeypatch, "check", "reviews.toml")
    assert "train 480, validation 60, test 60" in checked.stdout
    assert "read as CP932" in checked.stdout


def test_one_line_writes_the_files_that_it_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["study", "--model", "builtin", "--task", "reviews.csv", "--dry-run"]
    done = in_this_process(monkeypatch, *line)
    assert done.returncode == 0, done.stderr
    assert "8 configurations" in done.stdout
    assert "memory: LoRA, 3 configurations" in done.stdout, "the same page as check"
    assert not (folder / "tsugiki-runs").exists()
    written = (folder / "reviews-study.toml").read_text(encoding="utf-8")
    study = parse_study(tomllib.loads(written), "s")
    rates = {cell.method.name: cell.settings.get("learning_rate") for cell in expand(study)}
    assert rates["FT"] == pytest.approx(2 * rate_of("full", 384), rel=0.03), "an octave up"
    assert rates["LoRA"] == pytest.approx(2 * rate_of("lora", 384), rel=0.03)
    assert in_this_process(monkeypatch, *line).returncode == 0, "the same line again"
    (folder / "reviews-study.toml").write_text(written + "#\n", encoding="utf-8")
    other = in_this_process(monkeypatch, *line)
    assert other.returncode == 2
    assert "says something else. Run it with: tsugiki study reviews-study.toml" in other.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["study"], "name a study file, or both --model MODEL and --task TASK"),
        (["study", "--model", "builtin"], "both --model MODEL and --task TASK"),
        (["study", "demo", "--model", "builtin"], "a study file names its own"),
        (["study", "--model", "builtin", "--task", "review.csv"], "review.csv: no such file"),
        (["study", "--model", "builtin", "--task", "jnl"], 'Did you mean "jnli"'),
        (["study", "--model", "nowhere", "--task", "reviews.csv"], 'model "nowhere"'),
        (["tasks", "new", "nowhere.csv"], "nowhere.csv: no such file"),
        (["tasks", "new", "reviews.csv", "--target", "星々"], "no column “星々”"),
        (["tasks", "new", "reviews.csv", "--to", "x.txt"], "a task file ends in .toml"),
        (["check", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    line: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(monkeypatch, *line)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_with_a_template_is_spoken_to_by_it(tmp_path: Path) -> None:
    model = tmp_path / "spoken"
    shutil.copytree(BUILTIN, model)
    assert "format" not in study_text([str(model)], ["sample_nli"])
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (model / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template}), encoding="utf-8"
    )
    assert 'format = "chat"' in study_text([str(model)], ["sample_nli"])
    assert 'format = "chat"' not in study_text([str(model), "builtin"], ["sample_nli"])


def test_check_alone_says_what_this_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:geheim@proxy:8080")
    monkeypatch.setenv("TSUGIKI_OFFLINE", "1")
    done = in_this_process(monkeypatch, "check", "--out", str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    for said in ("tsugiki ", "torch ", "device", "precision", "fast paths", "extras", "cache of"):
        assert said in done.stdout
    assert "not used, since TSUGIKI_OFFLINE is set" in done.stdout
    assert "proxy:8080" in done.stdout
    assert "geheim" not in done.stdout + done.stderr
    assert "someone" not in done.stdout
    assert str(Path.home()) not in done.stdout
    lines = json.loads(in_this_process(monkeypatch, "check", "--json").stdout)["lines"]
    assert lines[0].startswith("tsugiki ")


@pytest.mark.slow
def test_600_rows_of_excel_become_a_report_in_six_commands(tmp_path: Path) -> None:
    """The commands of the tutorial, over a table as Excel for Japan saves it."""
    reviews(tmp_path)
    commands = [
        "check reviews.csv",
        "tasks new reviews.csv",
        "check reviews.toml",
        "study --model builtin --task reviews.toml --dry-run",
        "study --model builtin --task reviews.toml",
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "tsugiki", *command.split()],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr[-2000:])
    named = shlex.split(next_command(done.stdout))
    assert named[1] == "generate"
    answer = subprocess.run(
        [sys.executable, "-m", *named], capture_output=True, text=True, cwd=tmp_path
    )
    assert answer.stdout.strip() in ("良い", "悪い"), answer.stderr[-2000:]
    report = next((tmp_path / "tsugiki-runs").rglob("report.md")).read_text(encoding="utf-8")
    assert "LoRA" in report.splitlines()[2]
