"""Greedy answers near the device's limit: prompts read packed, tokens written by a recorded step over a fixed store.

read    p p p | p p p p p | p p          all prompts of a group in few packed passes, keys and values kept
write   a a a → a . a → . . a            one token a row a step; rows that ended are retired by halving the group

The same answers as `generate_ids`, its reference, up to the noise of the products; on a CPU the step runs unrecorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from tsugiki.model.attention import PACKED, STORED, KeyValueStore, attending
from tsugiki.model.capture import Recorder
from tsugiki.model.loading import Numerics, backbone_and_head

PROMPT_TOKENS = 16_384  # of one reading pass: large enough to be bound by products, small enough for any card
SMALLEST_GROUP = 8


class _Writer:
    """One group of rows: its store, the tokens to come, and the recorded steps for its shrinking sizes."""

    def __init__(self, model: Any, numerics: Numerics, rows: int, longest: int):
        self.model, self.numerics = model, numerics
        self.device = next(model.parameters()).device
        self.backbone, self.head = backbone_and_head(model)
        self.embed = model.get_input_embeddings()
        self.store = KeyValueStore(rows, longest, self.device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.recorder = Recorder(self.device) if self.device.type == "cuda" else None
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.numerics.autocast(self.device)

    def read(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Reads the prompts into the first rows of the store. Returns the first token of every answer."""
        passes, tokens = [0], 0
        for index, length in enumerate(map(len, prompts)):
            if tokens and tokens + length > PROMPT_TOKENS:
                passes.append(index)
                tokens = 0
            tokens += length
        for start, stop in zip(passes, [*passes[1:], len(prompts)], strict=True):
            self._read_pass(prompts[start:stop], start)
        self.store.lengths.zero_()
        self.store.lengths[: len(prompts)] = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        chosen: list[int] = self.tokens[: len(prompts)].tolist()
        return chosen

    def _read_pass(self, prompts: Sequence[Sequence[int]], first_row: int) -> None:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        edges = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        positions = torch.cat([torch.arange(int(length)) for length in lengths])
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        self.store.token_rows = torch.repeat_interleave(torch.arange(first_row, first_row + len(prompts)), lengths).to(self.device)
        self.store.token_positions = positions.to(self.device)
        with attending(self.model, PACKED), self._autocast():
            out = self.backbone(
                inputs_embeds=self.embed(ids.to(self.device)[None]),
                position_ids=self.store.token_positions[None],
                cu_seq=edges.to(self.device, torch.int32),
                longest=int(lengths.max()),
                store=self.store,
            )
            logits = self.head(out.last_hidden_state[0, edges[1:].to(self.device) - 1])
        self.tokens[first_row : first_row + len(prompts)] = logits.argmax(-1)

    def write(self, rows: int) -> list[int]:
        """Appends the waiting token of the first `rows` rows and chooses the next one."""
        if self.recorder is None:
            self._write(rows)
        else:
            if rows not in self.graphs:
                kept = (self.store.lengths.clone(), self.tokens.clone())
                self.recorder.warm_up(lambda: self._write(rows))
                self.graphs[rows] = self.recorder.record(lambda: self._write(rows))
                self.store.lengths.copy_(kept[0])
                self.tokens.copy_(kept[1])
            self.graphs[rows].replay()
        tokens: list[int] = self.tokens[:rows].tolist()
        return tokens

    def _write(self, rows: int) -> None:
        lengths = self.store.lengths[:rows]
        with attending(self.model, STORED), self._autocast():
            out = self.backbone(inputs_embeds=self.embed(self.tokens[:rows, None]), position_ids=lengths[:, None], store=self.store)
            logits = self.head(out.last_hidden_state[:, -1])
        self.tokens[:rows] = logits.argmax(-1)
        lengths += 1

    def keep(self, places: list[int]) -> None:
        """Retires all rows but those at `places`, which move to the front."""
        wanted = torch.tensor(places, device=self.device)
        self.store.keep_rows(wanted)
        self.tokens[: len(places)] = self.tokens[wanted]


@torch.inference_mode()
def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: int,
    eos_id: int | None,
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Greedy continuations of any number of prompts, in their order; an answer that ended closes with `eos_id`.

    Groups hold prompts of like length, at most `batch` and as many as a quarter of the free memory holds keys for.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: dict[int, list[int]] = {}
    writer: _Writer | None = None
    while len(answers) < len(order):
        longest = -(-(len(prompts[order[len(answers)]]) + max_new_tokens) // 64) * 64
        room = writer.store.rows if writer is not None and writer.store.longest == longest else _rows_that_fit(model, longest, batch)
        here = order[len(answers) : len(answers) + room]
        rows = _group_size(len(here), room)
        if writer is None or (writer.store.rows, writer.store.longest) != (room, longest):
            writer = None  # its store is freed before the next is made
            writer = _Writer(model, numerics, room, longest)
        answers.update(zip(here, _answer_group(writer, [prompts[index] for index in here], rows, max_new_tokens, eos_id), strict=True))
        if on_progress:
            on_progress(len(answers), len(order))
    return [answers[index] for index in range(len(prompts))]


def _answer_group(writer: _Writer, prompts: list[Sequence[int]], rows: int, max_new_tokens: int, eos_id: int | None) -> list[list[int]]:
    answers = [[token] for token in writer.read(prompts)]
    alive: list[int] = [*range(len(prompts))]  # which answer each row of the group belongs to
    for _ in range(max_new_tokens - 1):
        going = [place for place, index in enumerate(alive) if answers[index][-1] != eos_id]
        if not going:
            break
        smaller = _group_size(len(going), rows)
        if smaller < rows:
            writer.keep(going)
            alive, rows = [alive[place] for place in going], smaller
        for index, token in zip(alive, writer.write(rows), strict=False):
            if answers[index][-1] != eos_id:
                answers[index].append(token)
    return answers


def _group_size(needed: int, room: int) -> int:
    """The smallest of room, room / 2, room / 4 … (at least `SMALLEST_GROUP`) that holds `needed` rows: few sizes, few recordings."""
    size = room
    while size // 2 >= max(needed, SMALLEST_GROUP):
        size //= 2
    return size


def rows_at_once(batch: int, longest: int) -> int:
    """`batch` rows of up to 512 tokens, fewer longer ones."""
    return max(1, min(batch, batch * 512 // max(longest, 1)))


def _rows_that_fit(model: Any, longest: int, batch: int) -> int:
    device = next(model.parameters()).device
    if device.type != "cuda":
        return rows_at_once(batch, longest)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = 2 * 2 * config.num_hidden_layers * heads * width * longest
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rows = max(1, min(batch, free // 4 // row_bytes))
    return 1 << (rows.bit_length() - 1)
