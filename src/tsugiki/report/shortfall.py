"""What a report must say is missing: cells and methods without a result, seeds that failed,
methods that did not learn. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tsugiki.report.standing import Standing, lost_seeds, reason_text, standing_text
from tsugiki.runs.symptoms import symptoms_of
from tsugiki.study.cells import Key, StudyResult
from tsugiki.study.missing import test_of
from tsugiki.words import Language, in_language, say


def shortfalls(
    result: StudyResult,
    standings: Mapping[Key, Standing],
    unread: Mapping[str, str],
    language: Language,
) -> list[str]:
    """One line for each; empty where the study is whole and every method learned."""
    poor = [
        standing
        for standing in standings.values()
        if standing.kind in ("failed", "seeds failed")
        or (standing.kind == "no better" and standing.tuned)
    ]
    lines = [
        f"{standing.key[0]} · {standing.key[1]}: {standing_text(standing, language)}"
        for standing in poor
    ]
    return [*not_had(result, unread, language), *lines, *_symptoms(result, language)]


def _symptoms(result: StudyResult, language: Language) -> Iterator[str]:
    """What the test answers of chosen runs show, of the first seed."""
    for key, cell in result.chosen.items():
        for record in result.seeds(cell)[:1]:
            test = record.scores("test")
            assert test is not None, "seeds were scored on test"
            for symptom in symptoms_of(record, test):
                yield f"{' · '.join(key)}: {in_language(language, symptom)}"


def not_had(result: StudyResult, unread: Mapping[str, str], language: Language) -> list[str]:
    """Of these what could not be had, or not yet: the finding itself says which methods did not
    learn."""
    lines = [
        say(language, "shortfall.unread", label=label, why=why)
        for label, why in unread.items()
        if why not in result.missing.values()
    ]
    for why in dict.fromkeys(result.missing.values()):
        labels = [label for label, reason in result.missing.items() if reason == why]
        more = "" if len(labels) == 1 else say(language, "shortfall.more", others=len(labels) - 1)
        said = reason_text(why, language)
        lines.append(say(language, "shortfall.missing", first=labels[0], more=more, said=said))
    not_run = sum(
        cell.label not in result.missing and result.record(cell) is None for cell in result.cells
    )
    begun = sum(cell.label not in result.missing for cell, _ in result.begun())
    if not_run or begun:
        total = len(result.cells)
        lines.append(say(language, "shortfall.counts", begun=begun, not_run=not_run, total=total))
    return lines + _unfinished(result, language)


def _unfinished(result: StudyResult, language: Language) -> list[str]:
    """Chosen cells that were not tested yet, and seeds that were not tried yet."""
    tests = [
        cell
        for cell in result.chosen.values()
        if not result.seeds(cell) and test_of(cell.label) not in result.missing
    ]
    seeds = 0
    for cell in result.chosen.values():
        if cell not in tests:
            seeds += max(
                0,
                cell.seeds(result.study.num_seeds)
                - len(result.seeds(cell))
                - len(lost_seeds(result, cell)),
            )
    lines = []
    if tests:
        lines.append(say(language, "shortfall.not_tested", count=len(tests)))
    if seeds:
        lines.append(say(language, "shortfall.seeds", seeds=seeds))
    return lines
