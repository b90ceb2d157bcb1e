"""Task files and their data: every wrong input is named with file and row; splits never mix;
downloads are held to their pins."""

from __future__ import annotations

import csv
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests import build
from tsugiki.config.run import TaskChoice
from tsugiki.config.task import FileSpec, TaskKind
from tsugiki.data import sources
from tsugiki.data.leaks import Shared, refuse_leak, shared_rows
from tsugiki.data.rows import read_rows
from tsugiki.data.task_file import read_task
from tsugiki.data.tasks import builtin_tasks, load_task
from tsugiki.errors import DataError
from tsugiki.report.notes import leak_notes
from tsugiki.score.baselines import baselines, guessing_nats
from tsugiki.score.rules import METRICS


def rewrite(path: Path, number: int, change: dict | str) -> None:
    """Changes row `number` (from 1) of a JSON Lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = (
        change
        if isinstance(change, str)
        else json.dumps({**json.loads(lines[number - 1]), **change}, ensure_ascii=False)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_examples_carry_label_words_and_candidates(task_file: Path) -> None:
    task = load_task(TaskChoice(name=str(task_file)))
    assert {part: len(rows) for part, rows in task.examples.items()} == {
        "train": 24,
        "validation": 9,
        "test": 9,
    }
    first = task.examples["train"][0]
    assert first.target == "含意"
    assert first.candidates == ("含意", "中立", "矛盾")


def test_a_missing_field_names_file_row_and_field(task_file: Path) -> None:
    path = task_file.parent / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[16])
    row["bb"] = row.pop("b")
    rewrite(path, 17, json.dumps(row, ensure_ascii=False))
    with pytest.raises(
        DataError, match=r'train\.jsonl row 17: field "b" is missing. Did you mean "bb"'
    ):
        load_task(TaskChoice(name=str(task_file)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "entail"}, r'row 3: label "entail" is not among the labels. Known: c, e, n'),
        ("{broken", "row 3: not a JSON object in UTF-8"),
        ("[1]", "row 3: must be a JSON object, is list"),
    ],
)
def test_wrong_rows(task_file: Path, change: dict | str, message: str) -> None:
    rewrite(task_file.parent / "validation.jsonl", 3, change)
    with pytest.raises(DataError, match=message):
        load_task(TaskChoice(name=str(task_file)))


def test_an_empty_split_and_an_absent_file(task_file: Path) -> None:
    (task_file.parent / "test.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r'split "standard": test is empty'):
        load_task(TaskChoice(name=str(task_file)))
    (task_file.parent / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test\.jsonl: no such file"):
        load_task(TaskChoice(name=str(task_file)))


def test_unknown_names_are_met_with_the_known_ones(task_file: Path) -> None:
    with pytest.raises(DataError, match=r'task "jnl": no such task. Did you mean "jnli"'):
        load_task(TaskChoice(name="jnl"))
    with pytest.raises(DataError, match=r'no split "standrad". Did you mean "standard"'):
        load_task(TaskChoice(name=str(task_file), split="standrad"))
    with pytest.raises(DataError, match='no format "papr"'):
        load_task(TaskChoice(name=str(task_file), format="papr"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{a}", "{a"), "for curly brackets that are meant as text"),
        (("{a}", "{a.x}"), "no field"),
        (
            ('group = "image"', 'group = "image"\ngroup_pattern = "^[0-9]+"'),
            "needs one group in round brackets",
        ),
        (('group = "image"', 'group = "image"\ngroup_pattern = "("'), "is no regular expression"),
        (('group = "image"\n', ""), None),
    ],
)
def test_a_wrong_task_file_is_one_line(
    task_file: Path, change: tuple[str, str], message: str | None
) -> None:
    from tsugiki.cli.check import check_file

    task_file.write_text(task_file.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    if message is None:
        task = load_task(TaskChoice(name=str(task_file)))
        groups = [one.group for part in task.examples.values() for one in part]
        assert len(set(groups)) == len(groups), (
            "rows without a group field depend on no other row, of another file least of all"
        )
        return
    with pytest.raises(DataError, match=message):
        list(check_file(task_file))


def test_a_label_that_is_a_candidate_and_an_index_is_not_guessed(tmp_path: Path) -> None:
    from tsugiki.data.tasks import _chosen

    assert _chosen("row 1", "2", ("一", "二", "三")) == "三"
    assert _chosen("row 1", "0", ("0", "1")) == "0"
    with pytest.raises(DataError, match="is a candidate and also the index of another"):
        _chosen("row 1", "1", ("1", "2", "3"))


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"x\.parquet: damaged or cut short"):
        list(read_rows(tmp_path / "x.parquet"))


def test_choice_and_generation_from_csv(tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(
        'name="q"\ntitle="q"\nkind="choice"\nmetric="exact_match"\nlicence="CC0"\ncitation="-"\nfie'
        'lds=["問","ア","イ"]\nchoices=["ア","イ"]\n'
        'target="正解"\nmax_new_tokens=4\ndefault_split="s"\n[formats]\npaper="{問}[SEP]"\n[files]'
        '\nall={path="q.csv"}\n[splits.s]\ntrain={files="all"}\nvalidation={files="all",half="first'
        '"}\ntest={files="all",half="second"}\n',
        encoding="utf-8",
    )
    with (tmp_path / "q.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [
                ["問", "ア", "イ", "正解"],
                ["空は？", "青", "赤", "0"],
                ["血は？", "青", "赤", "赤"],
                ["葉は？", "緑", "黒", "0"],
            ]
        )
    task = load_task(TaskChoice(name=str(tmp_path / "q.toml")))
    assert [one.target for one in task.examples["train"]] == ["青", "赤", "緑"]
    assert (len(task.examples["validation"]), len(task.examples["test"])) == (2, 1)


def test_a_run_is_not_scored_on_a_file_it_was_trained_on(task_file: Path) -> None:
    leaky = load_task(TaskChoice(name=str(task_file), split="leaky"))
    with pytest.raises(DataError, match="test is cut from the same rows as the training data"):
        refuse_leak(leaky, leaky.files["train"], "test")
    clean = load_task(TaskChoice(name=str(task_file)))
    refuse_leak(clean, clean.files["train"], "test")


def test_halves_by_group_share_no_group(task_file: Path) -> None:
    text = task_file.read_text(encoding="utf-8")
    halves = (
        'validation = { files = "train", half = "first", by = "group" }\ntest = { files = '
        '"train", half = "second", by = "group" }\n'
    )
    task_file.write_text(
        text + '[splits.halves]\ntrain = { files = "test" }\n' + halves, encoding="utf-8"
    )
    task = load_task(TaskChoice(name=str(task_file), split="halves"))
    first, second = ({one.group for one in task.examples[part]} for part in ("validation", "test"))
    assert not first & second
    assert len(task.examples["validation"]) + len(task.examples["test"]) == 24
    assert abs(len(task.examples["validation"]) - 12) <= 1


def test_every_built_in_task_file_is_valid() -> None:
    assert {
        "jnli",
        "jcommonsenseqa",
        "xlsum_ja",
        "wikinews_ja",
        "sample_nli",
        "sample_choice",
        "sample_headline",
    } <= set(builtin_tasks())
    for path in builtin_tasks().values():
        spec = read_task(path)
        assert spec.default_format in spec.formats
        assert path.read_text(encoding="utf-8").startswith("#"), "the citation stands on top"


@pytest.mark.parametrize("split", ["paper", "by_image"])
def test_jcommonsenseqa_and_jnli_are_cut_as_the_paper_says(testdata: Path, split: str) -> None:
    if split == "paper":
        task = load_task(TaskChoice(name="jcommonsenseqa", data_dir=str(testdata)))
        assert [len(task.examples[part]) for part in ("train", "validation", "test")] == [
            8939,
            560,
            559,
        ]
    spec = Path(__file__).parents[2] / "benchmarks" / "workbench" / "jnli_substitute.toml"
    jnli = load_task(TaskChoice(name=str(spec), split=split, data_dir=str(testdata)))
    assert [len(jnli.examples[part]) for part in ("validation", "test")] == [1217, 1217]
    shared = {one.group for one in jnli.examples["validation"]} & {
        one.group for one in jnli.examples["test"]
    }
    assert bool(shared) == (split == "paper")


# ---- the network --------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves `content`; counts requests; can promise more bytes than it sends."""

    content = b'{"a": 1}\n'
    promised: int | None = None
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(self.promised or len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Answers.content, Answers.promised, Answers.asked = b'{"a": 1}\n', None, 0
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}/train.json"
    served.shutdown()
    served.server_close()


def test_a_pinned_file_is_fetched_once_and_read_offline(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FileSpec(url=server, git_blob=sources.git_blob_id(Answers.content))
    first = sources.locate(spec, tmp_path, None)
    monkeypatch.setenv("TSUGIKI_OFFLINE", "1")
    assert sources.locate(spec, tmp_path, None) == first
    assert Answers.asked == 1
    first.write_bytes(b"damaged")
    with pytest.raises(DataError, match="git blob id must be"):
        sources.locate(spec, tmp_path, None)


def test_a_wrong_or_broken_download_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Nothing was kept"):
        sources.locate(FileSpec(url=server, git_blob="0" * 40), tmp_path, None)
    Answers.promised = 50
    with pytest.raises(DataError, match=r"cannot be fetched|broke off"):
        sources.locate(
            FileSpec(url=server, sha256=hashlib.sha256(b"x").hexdigest()), tmp_path, None
        )
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_offline_says_so_and_by_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(DataError, match="cannot be fetched"):
        sources.locate(FileSpec(url="http://127.0.0.1:9/x.json"), tmp_path, None)
    monkeypatch.setenv("TSUGIKI_OFFLINE", "1")
    with pytest.raises(DataError, match="TSUGIKI_OFFLINE is set"):
        sources.locate(FileSpec(url="http://127.0.0.1:9/x.json"), tmp_path, None)


def test_the_git_blob_id_is_gits() -> None:
    assert sources.git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_tiny_task_is_readable(tmp_path: Path) -> None:
    assert load_task(TaskChoice(name=str(build.save_task(tmp_path)))).name == "tiny"


def test_what_of_a_part_stands_in_the_training_data_is_counted_once(task_file: Path) -> None:
    """The same text (white space and width apart), its two fields swapped, the same group: in that
    order."""
    trained = [{"a": f"左{n}", "b": f"右{n}", "label": "e", "image": f"t{n}"} for n in range(4)]
    tested = [
        {"a": "左０", "b": " 右 0", "label": "e", "image": "t1"},
        {"a": "右1", "b": "左1", "label": "e", "image": "x"},
        {"a": "新しい", "b": "文", "label": "e", "image": "t3"},
        {"a": "新しい", "b": "画像", "label": "e", "image": "y"},
    ]
    for part, rows in (("train", trained), ("test", tested)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (task_file.parent / f"{part}.jsonl").write_text(text, encoding="utf-8")
    task = load_task(TaskChoice(name=str(task_file)))
    assert shared_rows(task, "test") == Shared(same=1, mirrored=1, grouped=1)
    assert (
        "of 4 test rows 1 also occur in the training data, 1 with their two fields swapped, 1 more "
        "are of a group" in leak_notes(task, "en")[-1]
    )
    assert "テスト 4 事例のうち、学習データと同文 1" in leak_notes(task, "ja")[-1]
    (task_file.parent / "validation.jsonl").write_text(
        (task_file.parent / "test.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert (
        "of 4 test rows 4 also occur in the validation data"
        in leak_notes(load_task(TaskChoice(name=str(task_file))), "en")[-1]
    )


SAMPLES = {
    "classification": "sample_nli",
    "choice": "sample_choice",
    "generation": "sample_headline",
}


@pytest.mark.parametrize("kind", get_args(TaskKind))
def test_every_kind_has_its_rows_and_what_needs_no_model(kind: TaskKind) -> None:
    task = load_task(TaskChoice(name=SAMPLES[kind]))
    spec, rows = task.spec, task.examples["test"]
    assert spec.kind == kind
    assert all(bool(row.candidates) == spec.closed for row in rows)
    assert all(row.target in row.candidates for row in rows if spec.closed)
    known = baselines(spec, task.examples["train"], rows)
    assert {len(baseline.of(METRICS[spec.metric].main) or ()) for baseline in known} == {len(rows)}
    assert (guessing_nats(spec, task.examples["train"]) is None) == (not spec.closed)
