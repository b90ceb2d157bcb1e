"""Symptoms: what a run's own numbers say is wrong with it, each with its name, the likely cause and
what helps. docs/far-below-chance.md shows which causes give which. No torch here.

    answers end nowhere               most run to their limit: the end was not learned
    answers are not of the form       most are none of the candidates
    the rate is far from the recipe's said beside one of these, where it is
    updates are lost to rounding      most trained numbers stay as they are in a step
"""

from __future__ import annotations

from collections.abc import Iterator

from tsugiki.config.recipe import recipe_rate
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Scores
from tsugiki.words import Message

MOST = 0.5  # of the answers, or of the numbers that are trained
FAR = 5.0  # times the recipe's rate, or a part of it


def symptoms_of(record: RunRecord, scores: Scores) -> list[Message]:
    """Those that the answers to a part show; none of what nobody trained."""
    if not method_of(record.config).trains:
        return []
    said = list(_of_answers(record, scores))
    return [*said, *_of_rate(record)] if said else []


def lost_updates(lane: str, share: float | None) -> Iterator[Message]:
    """Of a lane, from the share of its numbers that a step did not change."""
    if share is not None and share > MOST:
        yield Message("symptom.lost_updates", lane=lane, share=100 * share)


def _of_answers(record: RunRecord, scores: Scores) -> Iterator[Message]:
    counts = scores.failures
    answers, ends = sum(counts.values()), " ".join(record.outcome.ends)
    unended = counts.get("no_eos", 0) + counts.get("repetition", 0)
    if unended > MOST * answers:
        yield Message("symptom.no_end", unended=unended, answers=answers, ends=ends)
    elif scores.candidate_rate is not None and scores.candidate_rate < MOST:
        outside = round((1 - scores.candidate_rate) * answers)
        yield Message("symptom.no_form", outside=outside, answers=answers)


def _of_rate(record: RunRecord) -> Iterator[Message]:
    width, rate = record.provenance.width, record.config.train.learning_rate
    recipe = recipe_rate(record.config, width) if width else None
    if recipe is not None and rate * FAR <= recipe:
        yield Message("symptom.rate_low", rate=rate, recipe=recipe, times=recipe / rate)
    elif recipe is not None and rate >= FAR * recipe:
        yield Message("symptom.rate_high", rate=rate, recipe=recipe, times=rate / recipe)
