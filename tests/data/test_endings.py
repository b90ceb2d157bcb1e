"""Where prompts begin and answers end: what the tokenizer adds, what the model's settings name,
what a chat template closes a turn with."""

from __future__ import annotations

import pytest

from tests import build
from tsugiki.data.chat import chat_ids_of
from tsugiki.data.example import Example
from tsugiki.data.prompts import (
    Tokens,
    answer_text,
    ending_of,
    prompt_ids_of,
    target_ids_of,
)

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + CLOSING }}{% endfor "
    "%}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
EXAMPLE = Example(id="1", fields={}, target="はい")


def test_an_end_mark_that_the_text_itself_has_stays() -> None:
    tokenizer = build.tokenizer()
    eos = tokenizer.eos_token_id
    assert prompt_ids_of(tokenizer, "犬</s>").count(eos) == 1
    assert prompt_ids_of(tokenizer, "犬").count(eos) == 0


@pytest.mark.parametrize("form", ["<s> $A </s>", "$A </s>", "<s> $A", "$A"])
def test_what_the_tokenizer_puts_around_a_text_stays_before_it_and_goes_behind_it(
    form: str,
) -> None:
    from tokenizers import processors

    tokenizer = build.tokenizer()
    specials = [(piece, tokenizer.convert_tokens_to_ids(piece)) for piece in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=specials
    )
    plain = tokenizer("犬</s>", add_special_tokens=False)["input_ids"]
    assert prompt_ids_of(tokenizer, "犬</s>") == [*([1] if form.startswith("<s>") else []), *plain]


def test_every_end_that_the_model_names_stops_an_answer_and_the_tokenizers_closes_it() -> None:
    ending = ending_of(build.tokenizer(), chat=False, stops=(4, 9))
    assert ending.ids == (2,)
    assert ending.stops == {2, 4, 9}


@pytest.mark.parametrize(
    ("closing", "ids", "stops"),
    [
        ("'</s>'", (2,), {2}),
        ("'[SEP]'", (4,), {2, 4}),
        ("'[SEP]</s>'", (4,), {2, 4}),
        ("'。'", (2,), {2}),
    ],
)
def test_in_a_conversation_an_answer_ends_as_the_template_closes_a_turn(
    closing: str, ids: tuple, stops: set
) -> None:
    tokenizer = build.tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("CLOSING", closing)
    ending = ending_of(tokenizer, chat=True)
    assert (ending.ids, set(ending.stops)) == (ids, stops)
    assert tuple(target_ids_of(tokenizer, "はい", ending)[-len(ids) :]) == ids
    assert ending_of(tokenizer, chat=False).ids == (2,)


def test_a_template_that_asks_for_the_date_is_told_the_same_one_always() -> None:
    tokenizer = build.tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d %f') + messages[0]['content'] }}"
    one, other = (chat_ids_of(tokenizer, EXAMPLE, "犬") for _ in range(2))
    assert one == other == tokenizer("2024-07-26 000000犬", add_special_tokens=False)["input_ids"]


def test_only_padding_is_dropped_from_what_the_model_said() -> None:
    tokenizer = build.tokenizer()
    ids = tokenizer("犬", add_special_tokens=False)["input_ids"]
    assert answer_text(tokenizer, [5, 9], [4, *ids, 3, 3]) == "[SEP]犬"


def test_a_row_ends_with_its_ending() -> None:
    ending = ending_of(build.tokenizer(), chat=False)
    row = Tokens(
        example=EXAMPLE,
        prompt_ids=(5,),
        target_ids=tuple(target_ids_of(build.tokenizer(), "はい")),
        ending=ending,
    )
    assert row.target_ids[-1:] == ending.ids


def test_a_control_token_without_a_role_closes_a_turn_too() -> None:
    tokenizer = build.tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE.replace("CLOSING", "'<|im_end|>'")
    ending = ending_of(tokenizer, chat=True)
    assert ending.ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert ending.stops == {2, *ending.ids}
