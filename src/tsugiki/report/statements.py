"""All that the finding says, sentence by sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tsugiki.report.finding import Finding, base_sentences, sentence
from tsugiki.report.standing import Standing, reason_text, standing_text
from tsugiki.study.cells import Key
from tsugiki.words import Language, say


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
    """A sentence for every pair; one for several pairs of a task whose methods all have no result
    for the same reason."""
    waiting = defaultdict[tuple[str, str, str], list[Finding]](list)
    for pair in pairs:
        if _wait_alike(pair):
            waiting[pair.model, pair.task, pair.first.why].append(pair)
    said = list[str]()
    for pair in pairs:
        alike = waiting[pair.model, pair.task, pair.first.why] if _wait_alike(pair) else []
        if len(alike) < 2:
            said.append(sentence(pair, language, brief=brief))
        elif pair is alike[0]:
            names = [
                each.method
                for alike_pair in alike
                for each in (alike_pair.first, alike_pair.second)
            ]
            values = {
                "where": f"{pair.model} · {pair.task}",
                "methods": ("、" if language == "ja" else ", ").join(dict.fromkeys(names)),
                "reason": reason_text(pair.first.why, language),
            }
            said.append(say(language, "finding.no_result_of", **values))
    return said


def _wait_alike(pair: Finding) -> bool:
    """Whether neither has a result, for one reason."""
    first, second = pair.first, pair.second
    return first.kind == second.kind == "missing" and first.why == second.why
