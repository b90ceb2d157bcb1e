"""Tables of the comparison itself: every pair's difference with what may be said of it, and what
each method was searched over. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.config.study import Range
from tsugiki.report.finding import Finding, decimals_of, sentence
from tsugiki.report.main_tables import points_cell
from tsugiki.report.table import Content, Table, column, lines, phrase, said
from tsugiki.runs.methods import method_of
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.words import Language, say

COMPARISON = (
    column("place", "text", "label.model_task"),
    column("pair", "text", "label.pair"),
    column("difference", "score", "label.difference_points"),
    column("seeds", "number", "label.seeds"),
    column("reading", "text", "label.reading"),
)
SEARCH = (
    column("row", "text", "label.model_task_method"),
    column("cells", "number", "label.cells"),
    column("learning_rates", "text", "label.learning_rates_tried"),
    column("epochs", "text", "label.epochs"),
    column("batch", "text", "label.batch"),
    column("max_length", "text", "label.longest_tokens"),
    column("precision", "text", "label.precision"),
    column("prompt", "text", "label.prompt"),
)


def comparison_table(findings: Sequence[Finding], result: StudyResult) -> Table:
    """Every pair of methods of a task on the same test examples; pairs that may not be compared
    with the reason under the table."""
    rows = [_pair_row(finding) for finding in findings]

    def notes(language: Language) -> list[str]:
        silent = [sentence(finding, language) for finding in findings if finding.verdict is None]
        return [_rule(f"{result.study.margin:g}", language), *silent]

    title = phrase("paired.title")
    return Table(
        name="pairs", title=title, columns=COMPARISON, rows=tuple(rows), notes=lines(notes)
    )


def _pair_row(finding: Finding) -> tuple[Content, ...]:
    pair, where = finding.comparison, f"{finding.model} · {finding.task}"
    names = f"{finding.first.method} - {finding.second.method}"
    if pair is None:
        return (where, names, None, None, phrase("label.no_verdict"))
    difference = points_cell(
        pair.difference, pair.low, pair.high, decimals_of(pair, finding.margin)
    )
    seeds = pair.seeds
    return (where, names, difference, seeds, said(lambda lang: _reading(finding, seeds, lang)))


def _rule(margin: str, language: Language) -> str:
    return say(language, "paired.rule", margin=margin)


def _reading(finding: Finding, seeds: int, language: Language) -> str:
    """The verdict in a word or two, with how many seeds it speaks of where they are few."""
    verdict = finding.verdict or "no verdict"
    if verdict in ("better", "worse"):
        ahead = finding.first.method if verdict == "better" else finding.second.method
        better = say(language, "paired.better", ahead=ahead)
        said = say(language, "paired.higher", ahead=ahead) if seeds == 2 else better
    else:
        said = say(language, f"label.{verdict.replace(' ', '_')}")
    if verdict == "undecided" or seeds > 2:
        return said
    one_seed = say(language, "paired.one_seed", said=said)
    return one_seed if seeds == 1 else say(language, "paired.two_seeds", said=said)


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
        prompt = cells[0].config.task.format or phrase("label.default")
        rows.append((" · ".join(key), len(cells), rates, *shared, _computed(result, cells), prompt))
    title = phrase("paired.search_title")
    return Table(name="search", title=title, columns=SEARCH, rows=tuple(rows))


def _computed(result: StudyResult, cells: Sequence[Cell]) -> str:
    """What the matmuls were computed in; what was asked for where nothing ran."""
    kinds = {
        record.provenance.numerics.compute
        for cell in cells
        if (record := result.record(cell)) is not None
    }
    return ", ".join(sorted(kinds)) or _tried(cells, "precision")


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
