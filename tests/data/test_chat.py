"""Any task through a chat template, and rows that are conversations: loss on the assistant's turns
and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tsugiki.config.run import TaskChoice
from tsugiki.data.prompts import tokenize
from tsugiki.data.tasks import find_task, load_task, unanswered
from tsugiki.errors import DataError, ModelError
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant', 'system'] %}{{ "
    "raise_exception('no such role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif "
    "%}"
)
TALK = """
name = "talk"
title = "talk"
kind = "generation"
metric = "rouge"
licence = "CC0"
citation = "none"
messages = "messages"
max_new_tokens = 12
default_split = "mine"
[files.all]
path = "talk.jsonl"
[files.held_out]
path = "held_out.jsonl"
[files.test]
path = "test.jsonl"
[splits.mine]
train = { files = "all" }
validation = { files = "held_out" }
test = { files = "test" }
"""


def chatty(template: str | None = TEMPLATE) -> Any:
    tokenizer = build.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def talk(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "talk.toml").write_text(TALK, encoding="utf-8")
    (folder / "talk.jsonl").write_text(
        "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )
    for name, answer in (("held_out", "赤です"), ("test", "白です")):
        one = [
            {"role": "user", "content": f"{name}の色は？"},
            {"role": "assistant", "content": answer},
        ]
        (folder / f"{name}.jsonl").write_text(
            json.dumps({"messages": one}, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return folder / "talk.toml"


ROWS = [
    [
        {"role": "system", "content": "短く答える"},
        {"role": "user", "content": "空は何色？"},
        {"role": "assistant", "content": "青"},
        {"role": "user", "content": "田は？"},
        {"role": "assistant", "content": "緑"},
    ],
    [{"role": "user", "content": "猫は？"}, {"role": "assistant", "content": "黒"}],
]


def test_every_assistant_turn_is_trained_and_nothing_else(tmp_path: Path) -> None:
    task, tokenizer = load_task(TaskChoice(name=str(talk(tmp_path, ROWS)))), chatty()
    rows = tokenize(tokenizer, task, task.examples["train"], 128)
    assert [row.example.target for row in rows] == ["青", "緑", "黒"]
    assert len({row.example.group for row in rows}) == 2, (
        "turns of one conversation belong together"
    )
    said = tokenizer.decode(rows[1].prompt_ids)
    assert said == "<system>短く答える\n<user>空は何色?\n<assistant>青\n<user>田は?\n<assistant>", (
        "up to the answer, opened for the assistant"
    )
    assert tokenizer.decode(rows[1].target_ids) == "緑</s>"


def test_any_task_can_be_said_through_the_template(task_file: Path) -> None:
    task, tokenizer = load_task(TaskChoice(name=str(task_file), format="chat")), chatty()
    [row] = tokenize(tokenizer, task, task.examples["train"][:1], 128)
    assert tokenizer.decode(row.prompt_ids).startswith("<user>文1: ")
    assert tokenizer.decode(row.prompt_ids).endswith("\n<assistant>")
    with pytest.raises(
        ModelError, match=r'has no chat template, so format = "chat" cannot be used'
    ):
        tokenize(chatty(None), task, task.examples["train"][:1], 128)
    with pytest.raises(ModelError, match="its chat template refuses row"):
        tokenize(chatty("{{ raise_exception('no') }}"), task, task.examples["train"][:1], 128)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", r'row 1: field "messages" must be a list of \{role, content\}'),
        ([{"role": "user"}], r'field "messages" must be a list'),
        (
            [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}],
            r'role "usr" is none of system, user, assistant. Did you mean "user"',
        ),
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        (
            [{"role": "assistant", "content": "a"}],
            "turn 1 is an assistant's with no prompt before it",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "turn 2 is an assistant's with no text",
        ),
    ],
)
def test_a_broken_conversation_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_task(TaskChoice(name=str(talk(tmp_path, [row]))))


def test_settings_that_conversations_do_not_read_are_refused(tmp_path: Path) -> None:
    path = talk(tmp_path, ROWS)
    path.write_text(
        TALK.replace("max_new_tokens = 12", 'max_new_tokens = 12\nfields = ["a"]'), encoding="utf-8"
    )
    with pytest.raises(DataError, match="fields: a task with messages does not read it"):
        load_task(TaskChoice(name=str(path)))


def test_a_chat_model_is_trained_on_conversations_and_answers(tmp_path: Path) -> None:
    from tests.build import run_config

    folder = build.save(tmp_path / "model")
    chatty().save_pretrained(folder)
    record = run_group([run_config(folder, talk(tmp_path / "task", ROWS * 4))], Store(tmp_path))[0]
    assert record.status == "done"
    assert record.scored("validation").main.n == 1


def test_a_conversation_is_never_torn_between_two_parts(tmp_path: Path) -> None:
    rows = [
        [
            {"role": who, "content": f"{number}{turn}"}
            for turn in range(3)
            for who in ("user", "assistant")
        ]
        for number in range(9)
    ]
    path = talk(tmp_path, ROWS)
    text = TALK.replace(
        'validation = { files = "held_out" }', 'validation = { files = "both", half = "first" }'
    ).replace('test = { files = "test" }', 'test = { files = "both", half = "second" }')
    path.write_text(text + '[files.both]\npath = "both.jsonl"\n', encoding="utf-8")
    (tmp_path / "both.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8"
    )
    task = load_task(TaskChoice(name=str(path)))
    parts = [{one.group for one in task.examples[part]} for part in ("validation", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 9


def test_a_conversation_to_be_answered_ends_with_its_last_question(
    tmp_path: Path,
) -> None:
    """A last turn of the assistant's is the target; without any there is nothing to be answered."""
    spec, _ = find_task(str(talk(tmp_path, ROWS)))
    asked = [{"role": "user", "content": "空は?"}]
    answered = [*asked, {"role": "assistant", "content": "青"}]
    rows = [(1, {"messages": asked}), (2, {"messages": answered}), (3, {"messages": []})]
    one, two = unanswered(spec, rows[:2], "new.jsonl")
    assert (one.target, two.target) == ("", "青")
    assert one.turns == two.turns == (("user", "空は?"),)
    with pytest.raises(DataError, match="row 3: no turn to be answered"):
        unanswered(spec, rows[2:], "new.jsonl")
