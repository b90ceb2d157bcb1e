"""What is looked at before the first step: refused where a score would be untrue, told with a
number and a row where one should know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import build
from tests.build import TRAIN, run_config
from tests.cli.test_cli import in_this_process
from tsugiki.cli.check import check_file
from tsugiki.config.run import ModelChoice, TaskChoice
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, DataError, ModelError, RunError
from tsugiki.model.loading import load_tokenizer
from tsugiki.model.tokenizers import refuse_other_ids
from tsugiki.report.compare import compare_runs
from tsugiki.runs.events import Events
from tsugiki.runs.finished import score_run
from tsugiki.runs.identity import SEMANTICS
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store
from tsugiki.study.preflight import look_first
from tsugiki.words import Message

CHAT = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '[SEP]' }}{% endfor %}{% if "
    "add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def run_of(config: object, store: Path) -> tuple[object, list[str]]:
    notes: list[str] = []
    listener = Events(on_note=notes.append)
    [record] = run_group([config], Store(store), listener)  # type: ignore[list-item]
    return record, notes


def task_of(task_file: Path, old: str, new: str) -> Path:
    task_file.write_text(task_file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return task_file


def free(task_file: Path, answers: list[str], most: int = 6) -> Path:
    """The tiny task as one of free text, its answers given."""
    text = (
        task_file.read_text(encoding="utf-8")
        .replace('"classification"', '"generation"')
        .replace('"accuracy"', '"rouge"')
    )
    text = text.replace('[labels]\ne = "含意"\nn = "中立"\nc = "矛盾"\n', "").replace(
        "max_new_tokens = 6", f"max_new_tokens = {most}"
    )
    task_file.write_text(text, encoding="utf-8")
    for part in ("train", "validation", "test"):
        rows = [
            {"a": f"文{part}{number}", "b": "二", "label": answer, "image": f"{part}{number}"}
            for number, answer in enumerate(answers)
        ]
        (task_file.parent / f"{part}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    return task_file


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "含意</s>",
            r"the answer “含意</s>” becomes the tokenizer's “</s>” \(a mark that ends an answer\)",
        ),
        ("<pad>", r"becomes the tokenizer's “<pad>” \(padding\)"),
        ("<unk>", r"becomes the tokenizer's “<unk>” \(its unknown token\)"),
    ],
)
def test_an_answer_that_no_model_could_give_is_refused(
    word: str, message: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    task_of(task_file, '"含意"', f'"{word}"')
    with pytest.raises(DataError, match=message):
        run_of(run_config(model_folder, task_file), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_that_loses_an_answer_is_refused(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    from tokenizers import normalizers

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tokenizer = build.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("矛", "")]
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        DataError,
        match="the answer “矛盾” comes back from the tokenizer as “盾”, so no answer could be "
        "right",
    ):
        run_of(run_config(folder, task_file), tmp_path)


def test_label_words_that_are_control_tokens_are_kept(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Users add <|含意|> to a tokenizer: dropped from what is decoded, every right answer would be
    empty."""
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = build.tokenizer()
    words = ["<|含意|>", "<|中立|>", "<|矛盾|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    model.resize_token_embeddings(600, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids("<|中立|>")] += (
            5.0  # whatever is asked
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = task_file.read_text(encoding="utf-8")
    for word in ("含意", "中立", "矛盾"):
        text = text.replace(f'"{word}"', f'"<|{word}|>"')
    task_file.write_text(text, encoding="utf-8")
    record, _ = run_of(
        run_config(folder, task_file, train={**TRAIN, "learning_rate": 1e-9}), tmp_path
    )
    answers = record.answers("validation")  # type: ignore[attr-defined]
    assert {one.target for one in answers} == set(words)
    assert any("<|" in one.answer for one in answers)


def test_free_answers_that_cannot_be_whole_are_counted_and_an_end_inside_one_is_refused(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record, notes = run_of(
        run_config(model_folder, free(task_file, ["犬", "犬が公園を走っています。"])), tmp_path
    )
    said = (
        "validation: 1 of 2 answers are longer than max_new_tokens = 6, so none of those can be "
        "given whole"
    )
    assert any(note.startswith(said) for note in notes)
    kept = record.outcome.notes  # type: ignore[attr-defined]
    assert [note for note in kept if note.startswith(said)], "kept in the record"
    with pytest.raises(
        DataError, match=r"train row train:2: the answer becomes the tokenizer's “</s>”"
    ):
        run_of(run_config(model_folder, free(task_file, ["犬", "犬</s>猫"])), tmp_path)


def test_control_tokens_in_the_users_texts_are_told_with_the_row(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    path = task_file.parent / "train.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8").replace("犬が公園", "犬が</s>公園", 1), encoding="utf-8"
    )
    _, notes = run_of(run_config(model_folder, task_file), tmp_path)
    assert notes == [
        "train: 1 of 24 rows hold control tokens of the tokenizer in their texts (first: row "
        "train:1, “</s>”)"
    ], "[SEP] is the format's"


def test_a_label_that_is_never_scored_is_told(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    path = task_file.parent / "validation.jsonl"
    rows = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if json.loads(line)["label"] != "c"
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    _, notes = run_of(run_config(model_folder, task_file), tmp_path)
    assert notes == [
        "validation: no row has the label 矛盾, which training has: a score there says nothing of "
        "it"
    ]


def conversations(folder: Path) -> Path:
    spec = (
        'name = "talk"\ntitle = "t"\nkind = "generation"\nmetric = "rouge"\nlicence = '
        '"m"\ncitation = "n"\nmessages = "messages"\nmax_new_tokens = 8\n'
        'default_split = "s"\n[splits.s]\n'
    )
    parts = ("train", "validation", "test")
    spec += "".join(f'{part} = {{ files = "{part}" }}\n' for part in parts) + "".join(
        f'[files.{part}]\npath = "{part}.jsonl"\n' for part in parts
    )
    folder.mkdir(exist_ok=True)
    (folder / "talk.toml").write_text(spec, encoding="utf-8")
    for part in parts:
        turns = [
            [{"role": "user", "content": f"犬{part}{n}"}, {"role": "assistant", "content": "猫"}]
            for n in range(6)
        ]
        if part == "train":
            turns.append(
                [
                    {"role": "user", "content": "犬が公園を走っています。" * 40},
                    {"role": "assistant", "content": "猫"},
                ]
            )
        (folder / f"{part}.jsonl").write_text(
            "".join(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in turns),
            encoding="utf-8",
        )
    return folder / "talk.toml"


def test_a_conversation_that_is_too_long_is_left_out_by_a_setting_and_counted(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    task = conversations(tmp_path / "talk")
    assert list(check_file(task))[-1] == "ok", "a task of conversations is a task file"
    with pytest.raises(
        DataError, match=r'leave such rows out of training with train.long_rows = "leave_out"'
    ) as caught:
        run_of(run_config(folder, task), tmp_path)
    assert "with cut" not in str(caught.value)
    record, notes = run_of(
        run_config(folder, task, train={**TRAIN, "long_rows": "leave_out"}), tmp_path
    )
    assert record.status == "done"  # type: ignore[attr-defined]
    assert record.outcome.left_out == 1  # type: ignore[attr-defined]
    assert record.outcome.ends == ("</s>", "[SEP]")  # type: ignore[attr-defined]
    assert any(
        "1 rows do not fit into 128 tokens and are left out (first: row train:7.1)" in note
        for note in notes
    )


def test_a_tokenizer_class_that_gives_other_ids_than_its_file_is_refused_with_the_remedy(
    tmp_path: Path,
) -> None:
    from tokenizers import normalizers

    build.tokenizer().save_pretrained(tmp_path)
    refuse_other_ids(tmp_path, PreTrainedTokenizerFast.from_pretrained(tmp_path), build.SENTENCES)
    other = build.tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("犬", "猫")
    with pytest.raises(
        ModelError,
        match=r"gives other ids than its tokenizer\.json on 2 of 5 texts.*With tokenizer_class = "
        r'"PreTrainedTokenizerFast" .* 0 of 5 differ',
    ):
        refuse_other_ids(tmp_path, other, build.SENTENCES)


def test_a_run_of_an_earlier_meaning_is_shown_and_never_taken_as_finished(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, task_file)
    record, _ = run_of(config, tmp_path)
    folder = record.folder  # type: ignore[attr-defined]
    old = folder.with_name(folder.name[:-12] + "0" * 12)
    shutil.copytree(folder, old)
    what = json.loads((old / "provenance.json").read_text(encoding="utf-8"))
    assert what.pop("semantics") == SEMANTICS == 3
    (old / "provenance.json").write_text(json.dumps(what), encoding="utf-8")
    earlier = Run(old).record()
    assert earlier.provenance.semantics == 1
    shutil.rmtree(folder)
    again, notes = run_of(config, tmp_path)
    assert again.folder == folder  # type: ignore[attr-defined]
    assert not any("finished before" in note for note in notes)
    assert compare_runs(earlier, again, "validation").n == 9  # type: ignore[arg-type]
    with pytest.raises(
        RunError, match=r"trained by an earlier version of tsugiki.*\(semantics 1, now 3\)"
    ):
        score_run(earlier, "test")


def test_check_without_weights_and_with_them_refuses_what_a_run_refuses(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run.toml"
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    run.write_text(
        f'[model]\npath = "{folder}"\n[task]\nname = "{task_file}"\n[lora]\nrank = '
        "2\n[train]\nlearning_rate = 1e-3\n",
        encoding="utf-8",
    )
    assert "the weights were not loaded: --load looks at what they do, too" in list(check_file(run))
    assert any(
        line.startswith("model model for lora: loaded") for line in check_file(run, load=True)
    )
    with pytest.raises(ModelError, match=r"lora.rank = 99"):
        list(check_file(run, ["lora.rank=99"]))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert list(check_file(run))[-1] == "ok"
    with pytest.raises(ModelError, match="its logits are not finite numbers"):
        list(check_file(run, load=True))


@pytest.mark.parametrize("name", ["demo", "sample_nli"])
def test_check_takes_the_names_of_what_is_built_in(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(monkeypatch, "check", name)
    assert done.returncode == 0, done.stderr
    assert " are of a group that is there" not in done.stdout
    assert done.stdout.splitlines()[-2] == "ok"


def test_check_says_what_is_built_in_where_a_name_is_not() -> None:
    with pytest.raises(
        ConfigError,
        match=r'papr: no such file, and no built-in task or study. Did you mean "paper"',
    ):
        list(check_file(Path("papr")))


def test_no_group_of_the_sample_tasks_stands_in_two_parts() -> None:
    task = load_task(TaskChoice(name="sample_nli"))
    groups = [
        {one.group for one in task.examples[part]} for part in ("train", "validation", "test")
    ]
    assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups))


def test_a_tokenizer_that_cannot_be_read_is_one_line(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert ModelChoice(path=str(folder)).label == "model"


def test_candidates_that_the_tokenizer_loses_are_counted(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """In a pinned file of 45,000 candidates a rare character in one of them must not refuse the
    task."""
    from tokenizers import normalizers

    from tests.data.test_text import choices

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tokenizer = build.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("③", "")
    tokenizer.save_pretrained(folder)
    task = choices(
        task_file.parent,
        lambda part: [
            {"a": f"問{part}{n}", "c0": "①", "c1": "②", "c2": "③", "label": n} for n in (0, 1, 2)
        ],
    )
    task.write_text(
        task.read_text(encoding="utf-8").replace("max_new_tokens = 6", "max_new_tokens = 12"),
        encoding="utf-8",
    )
    _, notes = run_of(run_config(folder, task), tmp_path)
    assert (
        "validation: the tokenizer loses 1 candidates, like “③” → “”; in 1 of 3 rows that is the "
        "right answer, which can never be given" in notes
    )


def test_unknown_characters_of_free_answers_are_counted_where_padding_is_the_unknown_token(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tokenizer = build.tokenizer()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(folder)
    _, notes = run_of(run_config(folder, free(task_file, ["犬", "<unk>"])), tmp_path)
    assert (
        "train: 1 of 2 answers hold characters that the tokenizer does not know, so they cannot be "
        "given (first: row train:2)" in notes
    )


def test_an_end_that_is_an_ordinary_token_is_told(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 508]}', encoding="utf-8")
    _, notes = run_of(run_config(folder, task_file), tmp_path)
    assert any(note.startswith("answers also end at 508 (“no token”)") for note in notes)


def test_truncation_and_padding_kept_in_a_tokenizer_file_change_nothing(tmp_path: Path) -> None:
    tokenizer = build.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    refuse_other_ids(tmp_path, build.tokenizer(), build.SENTENCES)


def test_a_model_that_writes_without_a_cache_says_so_and_is_trained_and_scored(
    task_file: Path, tmp_path: Path
) -> None:
    from tests.model.test_look import TAKEN, saved

    folder = saved(TAKEN["mamba"], tmp_path / "model")
    record, notes = run_of(
        run_config(folder, task_file, method="full", lora=None, train={**TRAIN, "max_length": 128}),
        tmp_path,
    )
    assert Message("note.without_cache") in notes
    assert score_run(record, "test").scores("test") is not None  # type: ignore[arg-type]


def test_a_configuration_that_is_refused_takes_no_other_with_it(
    model_folder: Path, task_file: Path
) -> None:
    """What it would hold is not counted; what the others hold is."""
    good = run_config(model_folder, task_file)
    bad = run_config(model_folder, task_file, lora={"targets": "q+v", "rank": 999})
    full = run_config(model_folder, task_file, method="full", lora=None)
    refused = look_first([bad, good, full])
    assert set(refused) == {bad}
    assert "at most" in str(refused[bad])
