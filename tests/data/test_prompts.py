"""Prompts and answers as ids: same prompt in training and inference, answer and end mark trained,
the answer never cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import build
from tsugiki.config.run import TaskChoice
from tsugiki.data.batch import IGNORED, Order, collate
from tsugiki.data.example import Example
from tsugiki.data.prompts import (
    Tokens,
    answer_text,
    check_ids,
    check_tokenizer,
    prompt_ids_of,
    render,
    target_ids_of,
    tokenize_one,
)
from tsugiki.data.tasks import Task, load_task
from tsugiki.errors import DataError, ModelError

WITH_SEP, WITHOUT_SEP = build.tokenizer(), build.tokenizer(sep=False)
TEXT = st.text(alphabet="犬猫空青今日は。、１a\n「」ｱ😀 ", min_size=0, max_size=30)


def tiny_task(folder: Path) -> Task:
    return load_task(TaskChoice(name=str(build.save_task(folder))))


@settings(max_examples=60)
@given(prompt=TEXT, target=TEXT.filter(str.strip), sep=st.booleans())
def test_labels_cover_exactly_the_target(prompt: str, target: str, sep: bool) -> None:
    tokenizer = WITH_SEP if sep else WITHOUT_SEP
    prompt_ids = prompt_ids_of(tokenizer, prompt + "[SEP]")
    target_ids = target_ids_of(tokenizer, target)
    row = Tokens(
        example=Example(id="0", fields={}, target=target),
        prompt_ids=tuple(prompt_ids),
        target_ids=tuple(target_ids),
    )
    batch = collate(
        [row, Tokens(example=row.example, prompt_ids=(5,) * 60, target_ids=(7, 2))],
        [0, 1],
        pad_id=2,
    )
    trained = batch.labels[0][batch.labels[0] != IGNORED].tolist()
    assert trained == target_ids
    assert trained[-1] == tokenizer.eos_token_id
    assert batch.input_ids[0, : len(row)].tolist() == [*prompt_ids, *target_ids]
    assert batch.num_target_tokens == len(target_ids) + 2


@settings(max_examples=60)
@given(prompt=TEXT, target=TEXT.filter(str.strip))
def test_the_answer_text_comes_back(prompt: str, target: str) -> None:
    ids = target_ids_of(WITH_SEP, target)[:-1]
    got = answer_text(WITH_SEP, prompt_ids_of(WITH_SEP, prompt + "[SEP]"), ids)
    assert got == WITH_SEP.decode(ids)


def test_sep_is_a_piece_or_plain_text_but_embeddings_stay(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    text = render(task.template, task.examples["train"][0])
    assert text == "文1: 犬が公園を走っています。[SEP]文2: 動物が外にいます。[SEP]"
    assert WITH_SEP.convert_tokens_to_ids("[SEP]") in prompt_ids_of(WITH_SEP, text)
    assert len(prompt_ids_of(WITHOUT_SEP, "[SEP]")) > 1


def test_long_text_gives_way_and_the_answer_does_not(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    long = Example(id="9", fields={"a": "犬が公園を走っています。" * 40, "b": "猫"}, target="含意")
    with pytest.raises(
        DataError, match=r'task "tiny" row 9: \d+ prompt tokens, but 64 less the answer leave'
    ):
        tokenize_one(WITH_SEP, task, long, 64)
    cutting = Task(**{**task.__dict__, "spec": task.spec.model_copy(update={"cut": "a"})})
    row = tokenize_one(WITH_SEP, cutting, long, 64)
    assert row.was_cut
    assert len(row.prompt_ids) + task.spec.max_new_tokens + 1 <= 64
    assert row.target_ids == tuple(target_ids_of(WITH_SEP, "含意"))
    assert WITH_SEP.decode(list(row.prompt_ids)).endswith("文2: 猫[SEP]")
    longer = Example(id="9", fields=long.fields, target="含意" * 20)
    with pytest.raises(DataError, match="but max_new_tokens is 6"):
        tokenize_one(WITH_SEP, cutting, longer, 64)
    free = Task(
        **{**cutting.__dict__, "spec": cutting.spec.model_copy(update={"kind": "generation"})}
    )
    assert tokenize_one(WITH_SEP, free, longer, 64).target_ids == tuple(
        target_ids_of(WITH_SEP, "含意" * 20)
    )
    with pytest.raises(DataError, match="Raise max_length"):
        tokenize_one(WITH_SEP, cutting, long, 12)


def test_a_template_with_an_unknown_field_is_an_error() -> None:
    with pytest.raises(DataError, match=r'no field "premis". Did you mean "premise"'):
        render("{premis}[SEP]", Example(id="0", fields={"premise": "x"}, target="y"))


def test_a_tokenizer_without_an_end_mark_is_refused() -> None:
    bare = build.tokenizer()
    bare.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        check_tokenizer(bare)


def test_an_id_that_the_model_has_no_row_for_is_refused_where_it_occurs() -> None:
    row = Tokens(
        example=Example(id="r7", fields={}, target="x"), prompt_ids=(5, 9), target_ids=(6, 2)
    )
    check_ids(WITH_SEP, [row], 10)
    with pytest.raises(
        ModelError,
        match=r"row r7 holds .* \(id 9\), but the model has 9 rows: they do not belong together",
    ):
        check_ids(WITH_SEP, [row], 9)


@given(rows=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_draws_every_row_once(rows: int, batch: int, seed: int) -> None:
    order = Order(num_rows=rows, batch=batch, seed=seed)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        drawn = [row for step in steps for row in order.rows_of(step)]
        assert sorted(drawn) == list(range(rows))
