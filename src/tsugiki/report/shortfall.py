"""What a report must say is missing: cells and methods without a result, seeds that failed,
methods that did not learn. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from tsugiki.report.standing import Standing, lost_seeds, reason_text, standing_text
from tsugiki.report.words import Language, pick
from tsugiki.study.cells import Key, StudyResult
from tsugiki.study.missing import test_of


def shortfalls(
    result: StudyResult,
    standings: Mapping[Key, Standing],
    unread: Mapping[str, str],
    language: Language,
) -> list[str]:
    """One line for each; empty where the study is whole and every method learned."""
    poor = [
        one for one in standings.values() if one.kind in ("no better", "failed", "seeds failed")
    ]
    told = [f"{one.key[0]} · {one.key[1]}: {standing_text(one, language)}" for one in poor]
    return [*not_had(result, unread, language), *told]


def not_had(result: StudyResult, unread: Mapping[str, str], language: Language) -> list[str]:
    """Of these what could not be had, or not yet: the finding itself says which methods did not
    learn."""
    lines = [
        pick(language, f"タスク {label} を読めません: {why}", f"Task {label} cannot be read: {why}")
        for label, why in unread.items()
        if why not in result.missing.values()
    ]
    for why in dict.fromkeys(result.missing.values()):
        labels = [label for label, reason in result.missing.items() if reason == why]
        more = (
            ""
            if len(labels) == 1
            else pick(language, f" ほか {len(labels) - 1} 件", f" and {len(labels) - 1} more")
        )
        said = reason_text(why, language)
        lines.append(
            pick(
                language,
                f"欠けている設定: {labels[0]}{more}（{said}）",
                f"Missing: {labels[0]}{more}: {said}",
            )
        )
    not_run = sum(
        cell.label not in result.missing and result.record(cell) is None for cell in result.cells
    )
    begun = sum(cell.label not in result.missing for cell, _ in result.begun())
    if not_run or begun:
        total = len(result.cells)
        lines.append(
            pick(
                language,
                f"{total} 設定のうち、未実行 {not_run}、途中 {begun}",
                f"Of {total} configurations {not_run} were not run and {begun} are not finished",
            )
        )
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
                cell.seeds(result.study.seeds)
                - len(result.seeds(cell))
                - len(lost_seeds(result, cell)),
            )
    lines = []
    if tests:
        lines.append(
            pick(
                language,
                f"選ばれた設定のうち {len(tests)} 個はテストが未評価",
                f"{len(tests)} chosen configurations were not scored on test yet",
            )
        )
    if seeds:
        lines.append(
            pick(
                language,
                f"選ばれた設定のシード {seeds} 個が未実行",
                f"{seeds} seeds of chosen configurations were not run yet",
            )
        )
    return lines
