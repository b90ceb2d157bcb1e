"""All that the finding says, sentence by sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugiki.report.finding import Finding, base_sentences, sentence
from tsugiki.report.standing import Standing, reason_text, standing_text
from tsugiki.study.cells import Key
from tsugiki.words import Language, say

MANY = 3  # methods without a result whose pairs are not named one by one


def statements(
    pairs: Sequence[Finding], standings: Mapping[Key, Standing], language: Language
) -> list[str]:
    """All that the finding says: every pair of tuned methods, these against the untouched base, and
    what became of a method that has no other to be compared with."""
    shown = [pair for pair in pairs if pair.second.tuned or pair.comparison is not None]
    paired = {standing.key for pair in shown for standing in (pair.first, pair.second)}
    unpaired = [
        standing
        for key, standing in standings.items()
        if key not in paired and standing.kind != "learned" and standing.tuned
    ]
    return [
        *pair_sentences([pair for pair in pairs if pair.second.tuned], language),
        *base_sentences(pairs, language),
        *(
            f"{standing.key[0]} · {standing.key[1]}: {standing_text(standing, language)}."
            for standing in unpaired
        ),
    ]


def pair_sentences(
    pairs: Sequence[Finding], language: Language, *, brief: bool = False
) -> list[str]:
    """A sentence for every pair; one for all pairs among three methods or more of a task that have
    no result for the same reason."""
    waiting = dict[tuple[str, str, str], list[str]]()
    for pair in pairs:
        for each in (pair.first, pair.second) if _wait_alike(pair) else ():
            names = waiting.setdefault((pair.model, pair.task, each.why), [])
            names += [each.method] if each.method not in names else []
    said = list[str]()
    for pair in pairs:
        names = waiting.get((pair.model, pair.task, pair.first.why), [])
        if len(names) < MANY or not _wait_alike(pair):
            said.append(sentence(pair, language, brief=brief))
        elif [pair.first.method, pair.second.method] == names[:2]:
            values = {
                "where": f"{pair.model} · {pair.task}",
                "methods": ("、" if language == "ja" else ", ").join(names),
                "reason": reason_text(pair.first.why, language),
            }
            said.append(say(language, "finding.no_result_of", **values))
    return said


def _wait_alike(pair: Finding) -> bool:
    """Whether neither has a result, for one reason."""
    first, second = pair.first, pair.second
    return first.kind == second.kind == "missing" and first.why == second.why
