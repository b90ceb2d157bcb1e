"""Greedy answers near the device's limit: prompts read packed, tokens written by a CUDA-graph step
over a fixed store.

read    p p p | p p p p p | p p   all prompts of a group in few packed passes, keys, values kept
write   a a a → a . a → . . a     one token a row a step; ended rows go by halving the group

The same answers as `generate_ids`, its reference, up to the noise of the matmuls; on a CPU the
step runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from tsugiki.fast.attention import PACKED, STORED, KeyValueStore, attending
from tsugiki.fast.cuda_graphs import GraphCapturer
from tsugiki.model.loading import backbone_and_head
from tsugiki.model.numerics import Numerics

PROMPT_TOKENS = (
    16_384  # of one reading pass: large enough to be bound by matmuls, small enough for any card
)
SMALLEST_GROUP = 8


class _Writer:
    """One group of rows: its store, the tokens to come, and the CUDA-graph steps for its shrinking
    sizes.

    With several lanes a group holds the same prompts once for each: rows lie lane after lane,
    `size` of each.
    """

    def __init__(self, model: Any, numerics: Numerics, lanes: int, room: int, longest: int):
        self.model, self.numerics, self.lanes, self.room = model, numerics, lanes, room
        self.device = next(model.parameters()).device
        self.backbone, self.head = backbone_and_head(model)
        self.embed = model.get_input_embeddings()
        self.store = KeyValueStore(lanes * room, longest, self.device)
        self.tokens = torch.zeros(lanes * room, dtype=torch.long, device=self.device)
        self.capturer = GraphCapturer(self.device) if self.device.type == "cuda" else None
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.numerics.autocast(self.device)

    def read(self, prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
        """Reads the prompts into the first rows of each lane. Returns each lane's first token of
        every answer."""
        passes, tokens = [0], 0
        for index, length in enumerate(map(len, prompts)):
            if tokens and (tokens + length) * self.lanes > PROMPT_TOKENS:
                passes.append(index)
                tokens = 0
            tokens += length
        lengths = torch.zeros(size, dtype=torch.long)
        lengths[: len(prompts)] = torch.tensor([len(prompt) for prompt in prompts])
        for start, stop in zip(passes, [*passes[1:], len(prompts)], strict=True):
            self._read_pass(prompts[start:stop], start, size)
        self.store.lengths.zero_()
        self.store.lengths[: self.lanes * size] = lengths.repeat(self.lanes).to(self.device)
        chosen = self.tokens[: self.lanes * size].view(self.lanes, size)[:, : len(prompts)]
        return [list(lane) for lane in chosen.tolist()]

    def _read_pass(self, prompts: Sequence[Sequence[int]], first_row: int, size: int) -> None:
        lengths = torch.tensor([len(prompt) for prompt in prompts]).repeat(self.lanes)
        edges = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).repeat(self.lanes)
        ids = torch.tensor([token for prompt in prompts for token in prompt]).repeat(self.lanes)
        rows = (
            size * torch.arange(self.lanes)[:, None]
            + torch.arange(first_row, first_row + len(prompts))
        ).reshape(-1)
        self.store.token_rows = torch.repeat_interleave(rows, lengths).to(self.device)
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
        self.tokens[rows.to(self.device)] = logits.argmax(-1)

    def write(self, size: int) -> list[list[int]]:
        """Appends the waiting token of the first `size` rows of each lane and chooses the next
        ones."""
        rows = self.lanes * size
        if self.capturer is None:
            self._step(rows)
        else:
            if rows not in self.graphs:
                self.graphs[rows] = self._capture(rows)
            self.graphs[rows].replay()
        written: list[list[int]] = self.tokens[:rows].view(self.lanes, size).tolist()
        return written

    def _capture(self, rows: int) -> torch.cuda.CUDAGraph:
        assert self.capturer is not None, "nothing is captured on a CPU"
        before = self.tokens.clone(), self.store.lengths.clone()
        self.capturer.warm_up(lambda: self._step(rows))
        graph = self.capturer.capture(lambda: self._step(rows))
        self.tokens.copy_(before[0])
        self.store.lengths.copy_(before[1])
        return graph

    def _step(self, rows: int) -> None:
        lengths = self.store.lengths[:rows]
        with attending(self.model, STORED), self._autocast():
            out = self.backbone(
                inputs_embeds=self.embed(self.tokens[:rows, None]),
                position_ids=lengths[:, None],
                store=self.store,
            )
            logits = self.head(out.last_hidden_state[:, -1])
        self.tokens[:rows] = logits.argmax(-1)
        lengths += 1

    def keep(self, rows: list[int]) -> None:
        """Retires all rows but these, which move to the front in this order."""
        wanted = torch.tensor(rows, device=self.device)
        self.store.keep_rows(wanted)
        self.tokens[: len(rows)] = self.tokens[wanted]


@torch.inference_mode()
def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: int,
    stops: Collection[int],
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Greedy continuations of any number of prompts, in their order; an answer that ended closes
    with one of `stops`.

    Groups hold prompts of like length, at most `batch` and as many as a quarter of the free memory
    holds keys for.
    """
    [answers] = generate_lanes(
        model,
        prompts,
        lanes=1,
        max_new_tokens=max_new_tokens,
        batch=batch,
        stops=stops,
        numerics=numerics,
        on_progress=on_progress,
    )
    return answers


@torch.inference_mode()
def generate_lanes(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    lanes: int,
    max_new_tokens: int,
    batch: int,
    stops: Collection[int],
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """`generate_all` for every lane of an adapted model at once: each lane's answers to the same
    prompts."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[dict[int, list[int]]] = [{} for _ in range(lanes)]
    writer: _Writer | None = None
    while (done := len(answers[0])) < len(order):
        longest = -(-(len(prompts[order[done]]) + max_new_tokens) // 64) * 64
        room = (
            writer.room
            if writer is not None and writer.store.longest == longest
            else max(1, _rows_that_fit(model, longest, lanes * batch) // lanes)
        )
        group = order[done : done + room]
        if writer is None or (writer.room, writer.store.longest) != (room, longest):
            writer = None  # its store is freed before the next is made
            writer = _Writer(model, numerics, lanes, room, longest)
        for lane, generated in zip(
            answers,
            _answer_group(writer, [prompts[index] for index in group], max_new_tokens, stops),
            strict=True,
        ):
            lane.update(zip(group, generated, strict=True))
        if on_progress:
            on_progress(len(answers[0]), len(order))
    return [[lane[index] for index in range(len(prompts))] for lane in answers]


def _answer_group(
    writer: _Writer, prompts: list[Sequence[int]], max_new_tokens: int, stops: Collection[int]
) -> list[list[list[int]]]:
    size = _group_size(len(prompts), writer.room)
    answers = [[[token] for token in lane] for lane in writer.read(prompts, size)]
    alive = [[*range(len(prompts))] for _ in answers]  # which answer each row of a lane belongs to
    for _ in range(max_new_tokens - 1):
        going = [
            [position for position, index in enumerate(rows) if answer[index][-1] not in stops]
            for answer, rows in zip(answers, alive, strict=True)
        ]
        if not any(going):
            break
        smaller = _group_size(max(map(len, going)), writer.room)
        if smaller < size:
            # A lane with fewer drags some ended row along.
            kept = [(positions + [0] * smaller)[:smaller] for positions in going]
            writer.keep(
                [lane * size + row for lane, positions in enumerate(kept) for row in positions]
            )
            alive = [
                [rows[position] for position in positions]
                for rows, positions in zip(alive, going, strict=True)
            ]
            size = smaller
        for answer, rows, tokens in zip(answers, alive, writer.write(size), strict=True):
            for index, token in zip(rows, tokens, strict=False):
                if answer[index][-1] not in stops:
                    answer[index].append(token)
    return answers


def _group_size(needed: int, room: int) -> int:
    """The smallest of room, room / 2, room / 4 … (at least `SMALLEST_GROUP`) that holds `needed`
    rows: few sizes, few captures."""
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
    free = (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )
    rows = max(1, min(batch, free // 4 // row_bytes))
    return 1 << (rows.bit_length() - 1)
