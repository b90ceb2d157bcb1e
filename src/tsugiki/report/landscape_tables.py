"""Tables of what a searched grid says. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tsugiki.config.study import Range, Setting
from tsugiki.report.cells import best_cell
from tsugiki.report.landscape import Landscape, edges, landscape_notes
from tsugiki.report.table import Content, Number, Said, Share, Table, column, lines, named
from tsugiki.report.texts import chosen_text
from tsugiki.report.words import Language, pick
from tsugiki.study.cells import Cell, StudyResult

LANDSCAPE = (
    column("row", "text", "Model · task · method"),
    column("cells", "number", "Cells"),
    column("best_setting", "text", "Best setting"),
    column("validation", "score", "Validation"),
    column("within_noise", "share", "Within noise of the best"),
    column("no_better", "share", "No better than the floor"),
    column("at_or_below", "share", "At or below it"),
    column("median", "number", "Median cell"),
    column("best_less_median", "number", "Best - median"),
)
SETTINGS = (
    column("row", "text", "Model · task · method"),
    column("setting", "text", "Setting"),
    column("value", "text", "Value"),
    column("best", "number", "Best"),
    column("mean", "number", "Mean"),
    column("cells", "number", "Cells"),
)


def landscape_table(found: Sequence[Landscape], result: StudyResult) -> Table:
    rows = list[tuple[Content, ...]]()
    for one in found:
        rows.append(
            (
                " · ".join(one.key),
                one.num,
                chosen_text(one.best),
                best_cell(one.record.scored("validation"), one.num),
                Share(count=one.near, of=one.num),
                Share(count=one.dead, of=one.num),
                Share(count=one.below, of=one.num),
                Number(value=statistics.median(one.values)),
                Number(value=one.fall),
            )
        )
    for key in dict.fromkeys(cell.key for cell in result.cells):
        records = [result.record(cell) for cell in result.cells if cell.key == key]
        failed = sum(record is not None and record.status == "failed" for record in records)
        if key not in result.chosen and failed:
            all_of_them, name = Share(count=failed, of=failed), named("no result")
            shares = (None, None, all_of_them, all_of_them, None, None)
            rows.append((" · ".join(key), failed, name, *shares))
    title = Said(
        ja="ハイパーパラメータへの依存（検証データ）",
        en="How much depends on the hyper-parameters, by validation",
    )

    def notes(language: Language) -> list[str]:
        said = [_legend(language), *landscape_notes(found, language)]
        return said + edges(result, language)

    return Table(
        name="landscape", title=title, columns=LANDSCAPE, rows=tuple(rows), notes=lines(notes)
    )


def _legend(language: Language) -> str:
    return pick(
        language,
        "「基準を上回らない」: モデルなしの基準（最頻クラス、選択問題ではチャンスレベル、"
        "要約では冒頭文）との対応のある差の 95 % 区間の下端が 0 以下の設定"
        "（テストでの判定と同じ規則）と、発散・停止した設定。「基準以下」: "
        "そのうち値が基準以下のもの。発散・停止した設定の値は 0 として中央値に含めます。"
        "「最良と区別できず」: 最良の設定との対応のある差の 95 % 区間が 0 以上に届く設定。"
        "最良の値は多数の中の最大なので、通常の区間は付けません。",
        "No better than the floor: cells whose 95 % interval of the paired difference to what "
        "needs no model (the most frequent class; chance, where "
        "candidates differ by row; a text's lead) does not lie above zero, by the rule that holds "
        "on test, and cells that diverged or were stopped. "
        "At or below it: those of them that score no more than it. Cells without a score count as "
        "0 in the median. Within noise of the best: the "
        "interval of the paired difference to the best cell reaches zero. The best of many has no "
        "ordinary interval, so none is printed.",
    )


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
    title = Said(ja="値ごとの評価値（検証データ）", en="Each searched value, by validation")
    note = Said(
        ja="★ は選ばれた設定の値。発散・停止した設定は 0 として数えます。",
        en="★: the chosen cell's value. Cells that diverged or were stopped count as 0.",
    )
    return Table(name="settings", title=title, columns=SETTINGS, rows=tuple(rows), notes=(note,))


def _scores_with(
    result: StudyResult, cells: Sequence[Cell], name: str, value: Setting
) -> list[float]:
    """What the cells with this value of a setting scored; 0 for those that failed."""
    records = [result.record(cell) for cell in cells if cell.settings[name] == value]
    ran = [one for one in records if one is not None and one.status in ("done", "failed")]
    return [one.main_score("validation") or 0.0 for one in ran]
