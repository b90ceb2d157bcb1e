"""What a Japanese terminal says in Japanese: notes, lines of memory, errors; and a pipe and JSON
in English."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.build import TRAIN, run_config, tokenizer
from tests.cli.test_cli import Terminal, in_this_process
from tests.cli.test_language import JAPANESE
from tsugiki.config.run import TrainConfig
from tsugiki.data.prompts import check_tokenizer, tokenize_one
from tsugiki.data.tasks import TaskChoice, load_task
from tsugiki.errors import TsugikiError
from tsugiki.model.numerics import numerics_of
from tsugiki.runs.store import Run
from tsugiki.train.memory import NoRoom, refuse_no_room
from tsugiki.words import in_language

pytestmark = pytest.mark.precision

Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def in_japan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TSUGIKI_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    return


def on_terminal(patch: pytest.MonkeyPatch, *arguments: str, cwd: Path | None = None) -> Done:
    return in_this_process(patch, *arguments, cwd=cwd, stream=Terminal)


def files(folder: Path) -> None:
    """Files with one mistake each."""
    (folder / "sjis.toml").write_bytes('name = "実験"'.encode("cp932"))
    (folder / "empty.toml").write_bytes(b"")
    (folder / "curly.toml").write_text("name = “実験”", encoding="utf-8")
    (folder / "rows.csv").write_text("text,label\na,x\nb,y\na,x\nb,y\n", encoding="utf-8")
    (folder / "blank.csv").write_text("text,label\n", encoding="utf-8")
    (folder / "euc.csv").write_bytes("文,ラベル\nひらがな,カナ\n".encode("euc_jp"))
    (folder / "ragged.csv").write_text("text,label\na,b,c\n", encoding="utf-8")
    (folder / "rows.txt").write_text("a", encoding="utf-8")
    (folder / "rows.parquet").write_bytes(b"PAR1")
    damaged = folder / "tsugiki-runs" / "runs" / "damaged"
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text("{", encoding="utf-8")


ERRORS = [
    ("check nowhere.toml", "nowhere.toml: ファイルがありません"),
    ("check dem", "組み込みのタスクやスタディもありません。「demo」ではありませんか。使えるもの: "),
    ("tasks show jnl", "タスク「jnl」はありません。「jnli」ではありませんか"),
    ("tasks show sample_nli --part tset", "--part 「tset」はありません。「test」では"),
    ("study dem --dry-run", "スタディ「dem」はありません。「demo」ではありませんか"),
    ("score --model ./no --task sample_nli", "モデル「./no」: フォルダがなく、Hub の ID"),
    ("study demo --dry-run --set train.epoch=1", "epoch: この設定はありません。「epochs」では"),
    ("study demo --dry-run --set train.epochs=x", "数でなければなりません（文字列を数として"),
    ("study demo --dry-run --set train.batch=0", "batch: 0 より大きく"),
    ("study demo --dry-run --set train=3", "キーを持つテーブルでなければなりません（指定された"),
    ("study demo --dry-run --set train", "--set train: train.learning_rate=2e-4 のように"),
    ("run sjis.toml", "sjis.toml: UTF-8 でなければなりません"),
    ("run empty.toml", "empty.toml: 空のファイルです"),
    ("run curly.toml", "全角記号や"),
    ("tasks new rows.csv --target nix", "rows.csv: 列「nix」はありません。使えるもの: label, text"),
    ("tasks new blank.csv", "blank.csv: 行がありません"),
    ("tasks new euc.csv", "euc.csv: UTF-8 でも CP932（Shift_JIS）でもありません"),
    ("tasks new ragged.csv", "見出しは 2 列ですが、3 列あります"),
    ("tasks new rows.txt", "拡張子「.txt」には対応していません"),
    ("tasks new rows.parquet", "pyarrow が必要です。次のコマンドで追加できます: pip install"),
    ("study demo --track nix", "トラッカー「nix」はありません"),
    ("show nowhere", "nowhere: フォルダがありません。実行結果の一覧は tsugiki ls"),
    ("show damaged", "config.json: 壊れているか、途中で切れています"),
    ("ls --out none", "none: 実行結果がありません"),
    ("report demo --out none", "このスタディの終わった実行がありません"),
    ("tasks show jnli", "オフラインです（TSUGIKI_OFFLINE が設定されています）"),
]


@pytest.mark.parametrize(("command", "japanese"), ERRORS, ids=[command for command, _ in ERRORS])
def test_what_a_newcomer_meets_is_said_in_japanese_on_a_terminal_alone(
    command: str, japanese: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setenv("TSUGIKI_OFFLINE", "1")
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    arguments = command.split()
    shown = on_terminal(monkeypatch, *arguments, cwd=tmp_path)
    piped = in_this_process(monkeypatch, *arguments, cwd=tmp_path)
    assert (shown.returncode, piped.returncode) == (2, 2)
    assert japanese in shown.stderr
    assert not JAPANESE.search(piped.stderr.replace("“実験”", ""))
    asked = in_this_process(monkeypatch, *arguments, "--lang", "ja", cwd=tmp_path)
    english = on_terminal(monkeypatch, *arguments, "--lang=en", cwd=tmp_path)
    assert japanese in asked.stderr
    assert english.stderr == piped.stderr


def test_an_error_beside_json_is_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = on_terminal(monkeypatch, "check", "nowhere.toml", "--json", cwd=tmp_path)
    assert done.stderr == "tsugiki: nowhere.toml: no such file\n"


def test_errors_below_the_commands_have_their_japanese(task_file: Path, tmp_path: Path) -> None:
    """Of tokenizers, lengths, memory and other processes."""
    task = load_task(TaskChoice(name=str(task_file)))
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(TsugikiError) as no_end:
        check_tokenizer(endless)  # type: ignore[arg-type]
    with pytest.raises(TsugikiError) as too_long:
        tokenize_one(tokenizer(), task, task.examples["train"][0], 16)  # type: ignore[arg-type]
    numerics = numerics_of("full", "fp32")
    with pytest.raises(NoRoom) as no_room:
        refuse_no_room(10**13, TrainConfig(learning_rate=1.0), numerics, torch.device("cpu"))
    run = Run(tmp_path / "runs" / "one")
    with run.lock(), pytest.raises(TsugikiError) as busy, run.lock():
        pass
    for caught, english, japanese in (
        (no_end, "has no EOS token", "EOS トークン（eos_token）がなく、解答が終わりません"),
        (too_long, "What helps: raise max_length", "対処: max_length を大きくする（モデルの最大長"),
        (no_room, "full fine-tuning needs", "フルファインチューニングには cpu に"),
        (no_room, "more memory", "LoRA、小さいモデル、大きいメモリのいずれかを使ってください"),
        (busy, "another process is working", "別のプロセスがこの実行を処理中です"),
    ):
        assert english in str(caught.value)
        assert japanese in in_language("ja", caught.value.message)


def test_a_label_that_is_none_is_said_in_japanese(
    task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = task_file.parent / "train.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace('"label": "e"', '"label": "entail"'))
    done = on_terminal(monkeypatch, "check", "tiny.toml", cwd=task_file.parent)
    assert "train.jsonl row 1: ラベル「entail」は定義されていません。" in done.stderr


def test_notes_and_memory_are_japanese_on_a_terminal_and_english_in_records(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (
        f'[model]\npath = "{model_folder}"\n[task]\nname = "{task_file}"\neval_rows = 1\n[train]\n'
        'learning_rate = 1e-3\nepochs = 1\nbatch = 8\nprecision = "fp32"\n'
        '[lora]\ntargets = "q+v"\nrank = 2\n'
    )
    (tmp_path / "run.toml").write_text(content, encoding="utf-8")
    japanese = "検証: 学習データにあるラベル"
    english = "validation: no row has the label"
    memory = "メモリ: LoRA（24 GiB の CUDA デバイス）: "
    checked = on_terminal(monkeypatch, "check", "run.toml", "--memory", "24", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    for said in (f"注意: tiny、{japanese}", memory, "モデル ", "1 回の逆伝播に", "分割 standard"):
        assert said in checked.stdout
    for runs, more in ((in_this_process, []), (on_terminal, ["--json"])):
        piped = runs(monkeypatch, "check", "run.toml", "--memory", "24", *more, cwd=tmp_path)
        assert english in piped.stdout
        assert "memory: LoRA: " in piped.stdout
        assert not re.search("注意|メモリ|モデル|逆伝播", piped.stdout)
    ran = on_terminal(monkeypatch, "run", "run.toml", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert japanese in ran.stderr
    [outcome] = (tmp_path / "tsugiki-runs" / "runs").glob("*/outcome.json")
    kept = outcome.read_text(encoding="utf-8")
    assert english in kept
    assert japanese not in kept
    again = in_this_process(monkeypatch, "run", "run.toml", cwd=tmp_path)
    assert "finished before; nothing was run" in again.stderr
    again = on_terminal(monkeypatch, "run", "run.toml", cwd=tmp_path)
    assert "完了済みのため、何も実行していません" in again.stderr


def test_a_run_that_diverged_says_so_in_japanese(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record says it in English, and is all that the second call has."""
    config = run_config(
        model_folder, task_file, method="full", lora=None, train={**TRAIN, "learning_rate": 1e6}
    )
    given = config.model_dump(mode="json", exclude_none=True)
    lines = ['method = "full"']
    for table in ("model", "task", "train"):
        lines.append(f"[{table}]")
        lines += [f"{name} = {value!r}".lower() for name, value in given[table].items()
                  if isinstance(value, (str, int, float)) and value is not None]  # fmt: skip
    (tmp_path / "run.toml").write_text("\n".join(lines), encoding="utf-8")
    for _ in range(2):
        done = on_terminal(monkeypatch, "run", "run.toml", cwd=tmp_path)
        assert "になり、学習が発散しました。学習率（1e+06）を下げてください" in done.stderr
    [outcome] = (tmp_path / "tsugiki-runs" / "runs").glob("*/outcome.json")
    assert "training diverged. Lower the learning rate" in outcome.read_text(encoding="utf-8")


def test_the_machine_and_a_data_file_are_described_in_japanese(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path)
    for arguments, japanese, english in (
        (["check"], "メモリ: 空き ", "memory: "),
        (["check", "rows.csv"], "解答: label（2 ラベル: x, y）、入力: text", "answer: label (2 la"),
        (["tasks", "list"], "形式: ", "formats: "),
        (["tasks", "show", "sample_nli", "--tokens"], "プロンプト ", " prompt + "),
    ):
        shown = on_terminal(monkeypatch, *arguments, cwd=tmp_path)
        piped = in_this_process(monkeypatch, *arguments, cwd=tmp_path)
        assert (shown.returncode, piped.returncode) == (0, 0), shown.stderr + piped.stderr
        assert japanese in shown.stdout
        assert japanese not in piped.stdout
        assert english in piped.stdout
    made = on_terminal(monkeypatch, "tasks", "new", "rows.csv", cwd=tmp_path)
    assert "rows.toml: 書き込みました" in made.stdout
