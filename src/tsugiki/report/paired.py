"""Tables of the comparison itself: every pair's difference with what may be said of it, and what
each method was searched over. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.config.study import Range
from tsugiki.report.finding import Finding, sentence
from tsugiki.report.table import Content, Estimated, Said, Table, column, lines, named, said
from tsugiki.report.words import Language, named_in, pick
from tsugiki.runs.methods import method_of
from tsugiki.study.cells import Cell, StudyResult

COMPARISON = (
    column("place", "text", "Model · task"),
    column("pair", "text", "Difference"),
    column("difference", "score", "Main score"),
    column("seeds", "number", "Seeds"),
    column("reading", "text", "Reading"),
)
SEARCH = (
    column("row", "text", "Model · task · method"),
    column("cells", "number", "Cells"),
    column("learning_rates", "text", "Learning rates tried"),
    column("epochs", "text", "Epochs"),
    column("batch", "text", "Batch"),
    column("max_length", "text", "Longest (tokens)"),
    column("precision", "text", "Precision"),
    column("prompt", "text", "Prompt"),
)


def comparison_table(found: Sequence[Finding], result: StudyResult) -> Table:
    """Every pair of methods of a task on the same test examples; pairs that may not be compared
    with the reason under the table."""
    rows = [_pair_row(one) for one in found]

    def notes(language: Language) -> list[str]:
        silent = [sentence(one, language) for one in found if one.verdict is None]
        return [_rule(f"{result.study.margin:g}", language), *silent]

    title = Said(ja="対応のある差", en="Paired differences on test")
    return Table(
        name="comparison", title=title, columns=COMPARISON, rows=tuple(rows), notes=lines(notes)
    )


def _pair_row(one: Finding) -> tuple[Content, ...]:
    pair, place = one.comparison, f"{one.model} · {one.task}"
    names = f"{one.first.method} - {one.second.method}"
    if pair is None:
        return (place, names, None, None, named("no verdict"))
    text = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    difference = Estimated(
        value=pair.difference, low=pair.low, high=pair.high, words=Said(en=text, ja=text)
    )
    seeds = pair.seeds
    return (place, names, difference, seeds, said(lambda lang: _reading(one, seeds, lang)))


def _rule(margin: str, language: Language) -> str:
    return pick(
        language,
        "同じテスト事例での対応のある差、95 % 区間。シードが 1 個なら事例（グループ単位）"
        "のブートストラップで、シードによる変動を含みません。"
        "2 個なら事例とシードのブートストラップ、3 個以上なら両方を含む t 区間。"
        f"「同等」は区間全体がこの比較の margin ±{margin} "
        "ポイントに収まること（実行前に決めておくもの）。組が複数あっても区間は補正していません。"
        "モデルなしの基準を上回らない手法、結果やシードの欠けた手法は比べません。",
        "Paired differences on the same test examples, 95 % intervals. One seed: bootstrap of the "
        "examples (by group), the spread between seeds not "
        "in it. Two: bootstrap of examples and seeds; three or more: a t interval of both. "
        f"Equal: the whole interval lies within ±{margin} points, this study's margin (to be fixed "
        "before the runs). Not corrected for the number of "
        "pairs. Methods no better than what needs no model, without a result, or with failed seeds "
        "are not compared.",
    )


def _reading(one: Finding, seeds: int, language: Language) -> str:
    """The verdict in a word or two, with how many seeds it speaks of where they are few."""
    verdict = one.verdict or "no verdict"
    if verdict in ("better", "worse"):
        ahead = one.first.method if verdict == "better" else one.second.method
        said = pick(
            language, f"{ahead} が上", f"{ahead} higher" if seeds == 2 else f"{ahead} better"
        )
    else:
        said = named_in(verdict, language)
    if verdict == "undecided" or seeds > 2:
        return said
    return pick(
        language,
        f"{said}（シード {seeds} 個）",
        f"{said} ({'this run' if seeds == 1 else 'two seeds'})",
    )


def search_table(result: StudyResult) -> Table:
    """What each method tried, side by side: a comparison is fair as far as these agree."""
    rows = list[tuple[Content, ...]]()
    for key in dict.fromkeys(cell.key for cell in result.cells):
        cells = [cell for cell in result.cells if cell.key == key]
        if not method_of(cells[0].config).trains:
            continue  # how an imported one was trained is not known
        drawn = isinstance(cells[0].method.grid.get("learning_rate"), Range)
        rates = rates_text(cells[0]) if drawn else _tried(cells, "learning_rate")
        shared = [_tried(cells, name) for name in ("epochs", "batch", "max_length")]
        prompt = cells[0].config.task.format or named("default")
        rows.append((" · ".join(key), len(cells), rates, *shared, _computed(result, cells), prompt))
    title = Said(ja="各手法の探索範囲と共通の条件", en="What each method tried, side by side")
    return Table(name="search", title=title, columns=SEARCH, rows=tuple(rows))


def _computed(result: StudyResult, cells: Sequence[Cell]) -> str:
    """What the products were computed in; what was asked for where nothing ran."""
    found = {
        record.provenance.numerics.compute
        for cell in cells
        if (record := result.record(cell)) is not None
    }
    return ", ".join(sorted(found)) or _tried(cells, "precision")


def rates_text(cell: Cell) -> str:
    """The range that a random search or TPE draws learning rates from."""
    tried = cell.method.grid["learning_rate"]
    assert isinstance(tried, Range), "a grid lists its values"
    return f"{tried.low:g} – {tried.high:g}"


def _tried(cells: Sequence[Cell], name: str) -> str:
    values = sorted(
        {getattr(cell.config.train, name) for cell in cells},
        key=lambda value: (isinstance(value, str), value),
    )
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(texts) if len(texts) <= 6 else f"{texts[0]} – {texts[-1]} ({len(texts)})"
