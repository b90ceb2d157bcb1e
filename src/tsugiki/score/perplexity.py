"""How well a model reads running text: nats a token, document by document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tsugiki.data.prompts import prompt_ids_of
from tsugiki.errors import DataError
from tsugiki.model.loading import Base
from tsugiki.score.choices import log_probs

WINDOW = 1024  # tokens, as far as a model has positions


def nats_of(
    base: Base,
    texts: Sequence[str],
    window: int,
    pad_id: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, int]]:
    """(nats, tokens) of each text, in windows of so many tokens that do not overlap, each after the
    tokenizer's own opening mark (without one the first token of a window is given, not read).

    Raises:
        DataError: no text has a token to read.
    """
    opening = prompt_ids_of(base.tokenizer, "")
    room, pairs, whose = window - len(opening), list[tuple[list[int], list[int]]](), list[int]()
    for number, text in enumerate(texts):
        ids = list(base.tokenizer(text, add_special_tokens=False)["input_ids"])
        for start in range(0, len(ids), room):
            some = ids[start : start + room]
            given, read = (opening, some) if opening else (some[:1], some[1:])
            if read:
                pairs.append((given, read))
                whose.append(number)
    if not pairs:
        raise DataError("forgetting: no text has a token to read")
    sums = [(0.0, 0)] * len(texts)
    for number, values in zip(
        whose, log_probs(base.model, pairs, pad_id, base.numerics, on_progress), strict=True
    ):
        nats, tokens = sums[number]
        sums[number] = (nats - sum(values), tokens + len(values))
    return sums
