"""`Example → Tokens` for an encoder: the row's texts as its tokenizer encodes a pair, and batches
of them.

classification    [text | text]                          the labels are the classes
choice            [question | choice] for each choice    the choices are scored one by one

Which texts: the task's fields that its prompt shows, in that order. The first stands before the
separator, the rest behind it. What else the prompt says is for models that write.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tsugiki.config.task import TaskSpec
from tsugiki.data.example import Example
from tsugiki.data.prompts import Options, Pair, Tokens, TooLong, shortened
from tsugiki.data.tasks import Task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import DataError, ModelError


def outputs_of(spec: TaskSpec) -> int:
    """Logits of a head: one for each label; one where each answer is read by itself."""
    return len(spec.fixed_answers) or 1


def encode(
    tokenizer: Tokenizer,
    task: Task,
    examples: Sequence[Example],
    max_length: int,
    leave_out: list[str] | None = None,
) -> list[Tokens]:
    """Rows as pairs, none of more than `max_length` tokens: the field `cut` of the task gives way.
    With `leave_out` the rows that do not fit are left out, and their ids are added to that list.

    Raises:
        DataError: the task's answers are free text; a row does not fit.
        ModelError: the tokenizer puts no mark before a text.
    """
    if not task.spec.closed:
        raise DataError(
            f'task "{task.name}": its answers are free text, and an encoder only chooses among '
            'answers. Name the tasks of its row in the study: tasks = ["…"]'
        )
    _check_marks(tokenizer)
    rows = []
    for example in examples:
        try:
            rows.append(_encode_one(tokenizer, task, example, max_length))
        except TooLong:
            if leave_out is None:
                raise
            leave_out.append(example.id)
    return rows


def _check_marks(tokenizer: Tokenizer) -> None:
    first = tokenizer("犬", "猫")["input_ids"][0]
    if first not in tokenizer.all_special_ids:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path}: puts no mark ([CLS], <s>) before a text, whose "
            "state an encoder's head reads"
        )


def _encode_one(tokenizer: Tokenizer, task: Task, example: Example, max_length: int) -> Tokens:
    options, cut = _options(tokenizer, task, example), task.spec.cut
    if (longest := _longest(options)) <= max_length:
        return Tokens(example=example, prompt_ids=(), target_ids=(), options=options)
    if cut is None:
        raise TooLong(
            f'task "{task.name}" row {example.id}: {longest} tokens, but the encoder reads '
            f"{max_length}. Shorten the row, leave such rows out of training with train.long_rows "
            '= "leave_out", or name the field that may be shortened with cut in the task file'
        )
    shorter = shortened(
        lambda each: _longest(_options(tokenizer, task, each)), task.name, example, cut, max_length
    )
    options = _options(tokenizer, task, shorter)
    return Tokens(example=example, prompt_ids=(), target_ids=(), options=options, was_cut=True)


def _longest(options: Options) -> int:
    return max(len(pair.ids) for pair in options.pairs)


def _options(tokenizer: Tokenizer, task: Task, example: Example) -> Options:
    spec, joint = task.spec, tokenizer.sep_token or ""
    texts = [example.fields[name] for name in _shown(task)]
    if spec.choices:
        question = joint.join(texts)
        pairs = [_pair(tokenizer, question, each) for each in example.candidates]
        return Options(texts=example.candidates, pairs=tuple(pairs))
    pair = _pair(tokenizer, texts[0], joint.join(texts[1:]) if texts[1:] else None)
    # In an order of their own: the numbers of classes must not depend on the task file's.
    return Options(texts=tuple(sorted(spec.fixed_answers)), pairs=(pair,))


def _shown(task: Task) -> list[str]:
    """The fields that the prompt shows, without those of the choices."""
    named = [name for _, name, _, _ in string.Formatter().parse(task.template) if name]
    return list(dict.fromkeys(name for name in named if name not in task.spec.choices))


def _pair(tokenizer: Tokenizer, first: str, second: str | None) -> Pair:
    made = tokenizer(first, second, return_token_type_ids=True)
    return Pair(ids=tuple(made["input_ids"]), types=tuple(made["token_type_ids"]))


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Pairs of some rows, row after row, padded on the right: `ids`, `mask`, `types` [b, t].
    `index` [rows, most] counts the answers of all rows, and says their sum where a row has fewer
    than others. Of each row [rows]: which answer is right, and its number."""

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor
    index: torch.Tensor
    right: torch.Tensor
    rows: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        """[1, t]"""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]

    def to(self, device: torch.device) -> PairBatch:
        names = ("ids", "mask", "types", "index", "right", "rows")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return PairBatch(**moved)


def collate_pairs(rows: Sequence[Tokens], numbers: Sequence[int], pad_id: int) -> PairBatch:
    """All pairs of these rows in one batch."""
    options = [options_of(row) for row in rows]
    pairs = [pair for each in options for pair in each.pairs]
    shape = (len(pairs), max(len(pair.ids) for pair in pairs))
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    types = torch.zeros(shape, dtype=torch.long)
    for number, pair in enumerate(pairs):
        length = len(pair.ids)
        ids[number, :length], mask[number, :length] = torch.tensor(pair.ids), 1
        types[number, :length] = torch.tensor(pair.types)
    counts = torch.tensor([len(each.texts) for each in options])
    index = (counts.cumsum(0) - counts)[:, None] + torch.arange(int(counts.max()))
    index[torch.arange(int(counts.max())) >= counts[:, None]] = int(counts.sum())
    return PairBatch(
        ids=ids,
        mask=mask,
        types=types,
        index=index,
        right=torch.tensor(
            [each.texts.index(row.example.target) for each, row in zip(options, rows, strict=True)]
        ),
        rows=torch.tensor(list(numbers)),
    )


def options_of(row: Tokens) -> Options:
    assert row.options is not None, "encoded for an encoder"
    return row.options


def check_pair_ids(tokenizer: Tokenizer, rows: Sequence[Tokens], vocab_size: int) -> None:
    """Raises `ModelError` for an id that occurs and that the encoder has no row for."""
    for row in rows:
        largest = max(token for pair in options_of(row).pairs for token in pair.ids)
        if largest >= vocab_size:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: row {row.example.id} holds id {largest}, but "
                f"the encoder has {vocab_size} rows: they do not belong together"
            )
