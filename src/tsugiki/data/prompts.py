"""`Example → Tokens`: the prompt and the answer, tokenised apart, so that training and inference see the same prompt ids.

    ids    p p p p p p p p a a a </s>
    loss   . . . . . . . . x x x x        the answer and the end mark are trained, nothing else

Embeddings are never resized: `[SEP]` is whatever the tokenizer makes of it, a piece of its own or plain text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.data.tasks import CHAT, Example, Task
from tsugiki.errors import DataError, ModelError, did_you_mean

Tokenizer = Any  # transformers.PreTrainedTokenizerBase; not imported here, it costs a second


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One row as ids. `target_ids` ends with the end mark; `was_cut` says that the text was shortened to fit."""

    example: Example
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    was_cut: bool = False

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
    """Raises `ModelError` for a tokenizer that cannot end an answer, or whose ids the model has no row for."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer {tokenizer.name_or_path}: has no end mark (eos_token), so an answer could never end. Set one in tokenizer_config.json")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ModelError(f"tokenizer {tokenizer.name_or_path}: {len(tokenizer)} pieces, but the model has {vocab_size} rows: they do not belong together")


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The id rows are padded with: the pad piece, or the end mark where there is none (masks go by position, so both do)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def render(template: str, example: Example) -> str:
    """The prompt text. Raises `DataError` for a field that the task does not have."""
    try:
        return template.format_map(dict(example.fields))
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as broken:
        try:
            wanted = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        except ValueError:
            raise DataError(f'format "{template}": {broken}. Write {{{{ and }}}} for curly brackets that are meant as text') from None
        missing = next((name for name in wanted if name not in example.fields), str(broken))
        raise DataError(f'format "{template}": no field "{missing}".{did_you_mean(missing, example.fields)}') from None


def prompt_ids_of(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt with the tokenizer's own opening mark, if it has one, and without a closing one."""
    ids = list(tokenizer(prompt)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def chat_ids_of(tokenizer: Tokenizer, example: Example, text: str) -> list[int]:
    """Ids of the conversation before the answer by the tokenizer's chat template, opened for the assistant; `text` is the user's message where there is none.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses these turns.
    """
    if not tokenizer.chat_template:
        raise ModelError(f'tokenizer {tokenizer.name_or_path}: has no chat template, so format = "chat" cannot be used. Choose another format')
    turns = [{"role": role, "content": content} for role, content in example.turns] or [{"role": "user", "content": text}]
    try:
        said = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as broken:  # templates raise what they like
        raise ModelError(f"tokenizer {tokenizer.name_or_path}: its chat template refuses row {example.id}: {str(broken).splitlines()[0]}") from broken
    return list(tokenizer(said, add_special_tokens=False)["input_ids"])


def _prompt_ids(tokenizer: Tokenizer, task: Task, example: Example) -> list[int]:
    text = render(task.template, example)
    return chat_ids_of(tokenizer, example, text) if task.format == CHAT else prompt_ids_of(tokenizer, text)


def target_ids_of(tokenizer: Tokenizer, target: str) -> list[int]:
    return [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def tokenize(tokenizer: Tokenizer, task: Task, examples: Sequence[Example], max_length: int, max_new_tokens: int | None = None) -> list[Tokens]:
    """Rows as ids, none longer than `max_length`: the field `cut` of the task gives way, the answer never does.

    Room for `max_new_tokens` (default: the task's) is kept free in every prompt, in training as in inference, so that both see the same ids.
    """
    return [tokenize_one(tokenizer, task, example, max_length, max_new_tokens) for example in examples]


def tokenize_one(tokenizer: Tokenizer, task: Task, example: Example, max_length: int, max_new_tokens: int | None = None) -> Tokens:
    """One row as ids; see `tokenize`. Raises `DataError` for a row that does not fit and may not be cut."""
    target = target_ids_of(tokenizer, example.target)
    allowed = max_new_tokens or task.spec.max_new_tokens
    if task.spec.kind != "generation" and len(target) > allowed:
        raise DataError(
            f'task "{task.name}" row {example.id}: the answer “{example.target}” has {len(target)} tokens, but max_new_tokens is {allowed}. Raise it'
        )
    room = max_length - max(allowed + 1, len(target))
    prompt = _prompt_ids(tokenizer, task, example)
    if len(prompt) <= room:
        return Tokens(example=example, prompt_ids=tuple(prompt), target_ids=tuple(target))
    cut = task.spec.cut
    if cut is None:
        raise DataError(
            f'task "{task.name}" row {example.id}: {len(prompt)} prompt tokens, but {max_length} less the answer leave {room}. '
            "Raise max_length (if the model has more positions), shorten the row, or name the field that may be shortened with cut in the task file"
        )
    return Tokens(example=example, prompt_ids=tuple(_shorten(tokenizer, task, example, cut, room)), target_ids=tuple(target), was_cut=True)


def _shorten(tokenizer: Tokenizer, task: Task, example: Example, cut: str, room: int) -> list[int]:
    """The longest beginning of the field `cut` whose prompt fits into `room` tokens (binary search over characters)."""
    text = example.fields[cut]

    def ids(length: int) -> list[int]:
        shorter = Example(id=example.id, fields={**example.fields, cut: text[:length]}, target=example.target)
        return _prompt_ids(tokenizer, task, shorter)

    low, high = 0, len(text)
    if len(ids(0)) > room:
        raise DataError(f'task "{task.name}" row {example.id}: even without the text of "{cut}" the prompt does not fit into {room} tokens. Raise max_length')
    while high - low > 1:
        middle = (low + high) // 2
        if len(ids(middle)) <= room:
            low = middle
        else:
            high = middle
    return ids(low)


def answer_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """What was generated: decode(prompt + answer) without decode(prompt), so that joints decode as in running text."""
    before = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
    both = tokenizer.decode([*prompt_ids, *answer_ids], skip_special_tokens=True)
    if both.startswith(before):
        return both[len(before) :]
    return tokenizer.decode(list(answer_ids), skip_special_tokens=True)
