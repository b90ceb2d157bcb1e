"""Tables of what a searched grid says. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tsugiki.config.study import Range, Setting
from tsugiki.report.cells import best_cell, setting_cell
from tsugiki.report.landscape import Landscape, edges, landscape_notes
from tsugiki.report.table import Content, Number, Share, Table, column, lines, phrase
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.words import Language, say

LANDSCAPE = (
    column("row", "text", "label.model_task_method"),
    column("cells", "number", "label.cells"),
    column("best_setting", "text", "label.best_setting"),
    column("validation", "score", "label.validation"),
    column("within_noise", "share", "label.within_noise_of_the_best"),
    column("no_better", "share", "label.no_better_than_the_floor"),
    column("at_or_below", "share", "label.at_or_below_it"),
    column("median", "number", "label.median_cell"),
    column("best_less_median", "number", "label.best_median"),
)
SETTINGS = (
    column("row", "text", "label.model_task_method"),
    column("setting", "text", "label.setting"),
    column("value", "text", "label.value"),
    column("best", "number", "label.best"),
    column("mean", "number", "label.mean"),
    column("cells", "number", "label.cells"),
)


def landscape_table(landscapes: Sequence[Landscape], result: StudyResult) -> Table:
    rows = list[tuple[Content, ...]]()
    for landscape in landscapes:
        rows.append(
            (
                " · ".join(landscape.key),
                landscape.num,
                setting_cell(landscape.best),
                best_cell(landscape.record.scored("validation"), landscape.num),
                Share(count=landscape.num_within_interval, of=landscape.num),
                Share(count=landscape.num_not_above, of=landscape.num),
                Share(count=landscape.below, of=landscape.num),
                Number(value=statistics.median(landscape.values)),
                Number(value=landscape.median_gap),
            )
        )
    for key in dict.fromkeys(cell.key for cell in result.cells):
        records = [result.record(cell) for cell in result.cells if cell.key == key]
        failed = sum(record is not None and record.status == "failed" for record in records)
        if key not in result.chosen and failed:
            all_of_them, name = Share(count=failed, of=failed), phrase("label.no_result")
            shares = (None, None, all_of_them, all_of_them, None, None)
            rows.append((" · ".join(key), failed, name, *shares))
    title = phrase("landscape_tables.title")

    def notes(language: Language) -> list[str]:
        said = [_legend(language), *landscape_notes(landscapes, language)]
        return said + edges(result, language)

    return Table(
        name="landscape", title=title, columns=LANDSCAPE, rows=tuple(rows), notes=lines(notes)
    )


def _legend(language: Language) -> str:
    return say(language, "landscape_tables.legend")


def settings_table(result: StudyResult) -> Table:
    """Each searched value: the best and the mean over all cells that have it."""
    rows = list[tuple[Content, ...]]()
    for key, best in result.chosen.items():
        cells = [cell for cell in result.cells if cell.key == key and not cell.method.search.prune]
        for name, tried in (cells[0].method.grid if cells else {}).items():
            for value in tried if not isinstance(tried, Range) and len(tried) > 1 else ():
                scores = _scores_with(result, cells, name, value)
                if scores:
                    mark = " ★" if best.settings[name] == value else ""
                    text = f"{value:g}{mark}" if isinstance(value, float) else f"{value}{mark}"
                    numbers = (Number(value=max(scores)), Number(value=statistics.fmean(scores)))
                    rows.append((" · ".join(key), name, text, *numbers, len(scores)))
    title = phrase("landscape_tables.settings_title")
    note = phrase("landscape_tables.settings_note")
    return Table(name="settings", title=title, columns=SETTINGS, rows=tuple(rows), notes=(note,))


def _scores_with(
    result: StudyResult, cells: Sequence[Cell], name: str, value: Setting
) -> list[float]:
    """What the cells with this value of a setting scored; 0 for those that failed."""
    records = [result.record(cell) for cell in cells if cell.settings[name] == value]
    ran = [
        record for record in records if record is not None and record.status in ("done", "failed")
    ]
    return [record.main_score("validation") or 0.0 for record in ran]
