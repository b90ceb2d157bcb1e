"""Packing keeps every token once and in order; the planned shapes hold every batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki.data.batch import IGNORED
from tsugiki.data.example import Example
from tsugiki.data.packing import (
    PackableRows,
    PackedShape,
    largest_of,
    plan_shapes,
    shape_for,
    split_rows,
)
from tsugiki.data.prompts import Tokens

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=30)


def made(lengths: list[tuple[int, int]]) -> tuple[list[Tokens], PackableRows]:
    start, rows = 1, []
    for number, (prompt, target) in enumerate(lengths):
        ids = range(start, start + prompt + target)  # every id once
        start = ids.stop
        rows.append(
            Tokens(
                example=Example(id=str(number), fields={}, target=""),
                prompt_ids=tuple(ids[:prompt]),
                target_ids=tuple(ids[prompt:]),
            )
        )
    return rows, PackableRows.of(rows)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 9), st.integers(0, 3), st.integers(0, 4), st.randoms())
def test_every_token_is_packed_once_and_in_order(
    lengths, more_tokens, more_documents, more_targets, random
) -> None:
    rows, packable = made(lengths)
    numbers = list(range(len(rows)))
    random.shuffle(numbers)
    exact = packable.exact_shape(numbers)
    shape = PackedShape(
        tokens=exact.tokens + more_tokens,
        documents=exact.documents + more_documents,
        longest=exact.longest,
        targets=exact.targets + more_targets,
    )
    out = np.full(shape.size, 77, dtype=np.int64)
    packable.pack(numbers, shape, out, num_targets=5, step=9)
    views = shape.views(out)
    assert views["input_ids"][: exact.tokens].tolist() == [
        i for n in numbers for i in (*rows[n].prompt_ids, *rows[n].target_ids)
    ]
    assert not views["input_ids"][exact.tokens :].any()
    edges = views["cu_seq"].tolist()
    assert edges[: len(numbers) + 1] == [0, *np.cumsum(packable.lengths[numbers])]
    idle = edges[len(numbers) + 1 :]
    assert len(idle) == more_documents + 1
    assert [exact.tokens, *idle] == sorted([exact.tokens, *idle])
    assert idle[-1] == shape.tokens
    answers = [i for n in numbers for i in rows[n].target_ids]
    assert views["targets"].tolist() == [*answers, *[IGNORED] * more_targets]
    assert [views["input_ids"][place + 1] for place in views["sources"][: len(answers)]] == answers
    assert views["rows"][: exact.tokens].tolist() == [
        n for n in numbers for _ in range(packable.lengths[n])
    ]
    assert views["positions"][: exact.tokens].tolist() == [
        p for n in numbers for p in range(packable.lengths[n])
    ]
    assert views["scalars"].tolist() == [5, 9]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 8))
def test_the_planned_shapes_hold_every_batch(lengths, batch, most) -> None:
    _, packable = made(lengths)
    wanted = [
        packable.exact_shape(range(start, min(start + batch, len(lengths))))
        for start in range(0, len(lengths), batch)
    ]
    shapes = plan_shapes(wanted, most=most)
    assert len(shapes) <= most
    assert shapes == sorted(shapes, key=lambda shape: -shape.tokens)
    for shape in wanted:
        room = shapes[shape_for(shape, shapes)]
        # The idle document is no longer than the kernel's limit.
        assert room.tokens - shape.tokens <= room.longest * room.idle


def test_few_shapes_are_chosen_where_the_batches_are() -> None:
    """Ninety batches of one size and ten of another: two shapes fill up nothing."""
    wanted = [PackedShape(tokens=160, documents=8, longest=40, targets=16)] * 90 + [
        PackedShape(tokens=640, documents=8, longest=90, targets=24)
    ] * 10
    assert [shape.tokens for shape in plan_shapes(wanted, most=2)] == [640, 160]
    assert [shape.tokens for shape in plan_shapes(wanted, most=1)] == [640]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 120),
)
def test_micro_batches_keep_the_rows_and_the_limits(lengths, max_rows, max_tokens) -> None:
    parts = split_rows(
        range(len(lengths)), np.array(lengths), max_rows=max_rows, max_tokens=max_tokens
    )
    assert [number for part in parts for number in part] == list(range(len(lengths)))
    for part in parts:
        assert part
        assert max_rows is None or len(part) <= max_rows
        assert max_tokens is None or len(part) == 1 or sum(lengths[n] for n in part) <= max_tokens


def test_a_shape_that_was_not_planned_is_our_own_fault() -> None:
    shape = PackedShape(tokens=10, documents=1, longest=10, targets=1)
    with pytest.raises(AssertionError, match="the plan was made for other rows"):
        shape_for(PackedShape(tokens=11, documents=1, longest=10, targets=1), [shape])


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 8), st.randoms())
def test_idle_documents_of_unequal_lanes_are_no_longer_than_the_longest(
    lengths, batch, most, random
) -> None:
    """Whatever steps the lanes stand at: no idle document is longer than what the attention kernel
    was told."""
    _, packable = made(lengths)
    parts = [
        list(range(start, min(start + batch, len(lengths))))
        for start in range(0, len(lengths), batch)
    ]
    exact = [packable.exact_shape(part) for part in parts]
    shapes = plan_shapes(exact, most=most, lanes=2)
    for _ in range(5):
        pair = [random.choice(parts), random.choice(parts)]
        here = [packable.exact_shape(part) for part in pair]
        shape = shapes[shape_for(largest_of(here), shapes, min(one.tokens for one in here))]
        for part in pair:
            out = np.zeros(shape.lane_size, dtype=np.int64)
            packable.pack(part, shape, out, num_targets=1, step=0)
            edges = shape.views(out)["cu_seq"]
            assert (np.diff(edges) >= 0).all()
            assert np.diff(edges).max() <= shape.longest
            assert edges[-1] == shape.tokens
