"""Scores of classification that are no mean over rows: macro-F1, balanced accuracy, Matthews'
correlation, as scikit-learn defines them. No model and no torch here.

To choose by one, or to compare, each row needs a value of its own. It has the score plus its
influence on it (the derivative along the row's weight): the mean of these is the score exactly, and
their spread is its variance to first order (the delta method, or infinitesimal jackknife), so that
intervals, groups and paired differences are those of any other score.
Source: Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6; measured
in docs/verdicts.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tsugiki.data.text import normalise

Pair = tuple[str, str]


def class_scores(
    answers: Sequence[str], targets: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Macro-F1, balanced accuracy and Matthews' correlation over the label words; an answer outside
    the labels is no label's (for the correlation: one of its own).

    macro_f1: mean over labels of 2·tp / (2·tp + fp + fn), 0 where that is 0/0. balanced_accuracy:
    mean recall of the labels that occur. mcc: Gorodkin 2004, 0 where answers or labels are all one.
    """
    pairs = _pairs(answers, targets)
    words = [normalise(label) for label in labels]
    recalls = []
    for label in words:
        there = sum(target == label for _, target in pairs)
        right = sum(answer == target == label for answer, target in pairs)
        recalls += [right / there] if there else []
    return {
        "macro_f1": _mean(_macro_f1(pairs, words)),
        "balanced_accuracy": _mean(recalls),
        "mcc": _mean(_correlation(pairs, set(words))),
    }


def macro_f1(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Each row's value, over the labels that occur among the targets."""
    pairs = _pairs(answers, targets)
    return _macro_f1(pairs, sorted({target for _, target in pairs}))


def correlation(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Each row's value of Matthews' correlation."""
    pairs = _pairs(answers, targets)
    return _correlation(pairs, {target for _, target in pairs})


def _pairs(answers: Sequence[str], targets: Sequence[str]) -> list[Pair]:
    return [
        (normalise(answer), normalise(target))
        for answer, target in zip(answers, targets, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _macro_f1(pairs: Sequence[Pair], labels: Sequence[str]) -> list[float]:
    """F1 = 2r / s with r = P(answer = target = l), s = P(answer = l) + P(target = l): a row moves
    it by (2(row in r - r) - F1(row in s - s)) / s."""
    n, values = len(pairs), [0.0] * len(pairs)
    for label in labels:
        right = sum(answer == target == label for answer, target in pairs) / n
        both = sum((answer == label) + (target == label) for answer, target in pairs) / n
        if not both:
            continue
        f1 = 2 * right / both
        for row, (answer, target) in enumerate(pairs):
            hit = 2 * ((answer == target == label) - right)
            seen = (answer == label) + (target == label) - both
            values[row] += (f1 + (hit - f1 * seen) / both) / len(labels)
    return values


def _correlation(pairs: Sequence[Pair], labels: set[str]) -> list[float]:
    """R = (c - Σ pₖtₖ) / √((1 - Σ pₖ²)(1 - Σ tₖ²)) with the shares c of right answers, pₖ of
    answers and tₖ of targets of class k; answers outside the labels are a class of their own."""
    n = len(pairs)
    named = [(answer if answer in labels else "", target) for answer, target in pairs]
    said = {k: count / n for k, count in Counter(answer for answer, _ in named).items()}
    there = {k: count / n for k, count in Counter(target for _, target in named).items()}
    right = sum(answer == target for answer, target in named) / n
    by_chance = sum(share * there.get(k, 0.0) for k, share in said.items())
    spreads = [sum(share * share for share in shares.values()) for shares in (said, there)]
    root = math.sqrt((1 - spreads[0]) * (1 - spreads[1]))
    if root < 1e-6:
        return [0.0] * n
    score = (right - by_chance) / root
    values = []
    for answer, target in named:
        over = (answer == target) - right
        over -= there.get(answer, 0.0) + said.get(target, 0.0) - 2 * by_chance
        # The derivatives of 1 - Σp² and 1 - Σt², each over itself.
        under = sum(
            -2 * (shares[k] - spread) / (1 - spread)
            for shares, k, spread in ((said, answer, spreads[0]), (there, target, spreads[1]))
        )
        values.append(score + over / root - score / 2 * under)
    return values
