"""Tables as LaTeX: every table as a booktabs tabular, and the scores as a table for a two-column
paper. No torch here."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.report.compare import pooled
from tsugiki.report.exclusive import exclusive_step_s, peak_of_one
from tsugiki.report.finding import Finding
from tsugiki.report.main_tables import Entry, difference_cell, entries_of, reference_of
from tsugiki.report.standing import lost_seeds
from tsugiki.report.table import InWords, numbers_of
from tsugiki.study.cells import StudyResult

SIGNS = {
    "\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "⏎": " ", "\n": " ", "\r": " ",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "α": r"$\alpha$", "★": r"$\star$",
    "≥": r"$\ge$", "≤": r"$\le$", "†": r"\dag{}", "‡": r"\ddag{}", "→": r"$\rightarrow$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def to_latex(table: InWords) -> str:
    """A booktabs tabular; notes follow as comments."""
    rows = [" & ".join(map(escaped, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(escaped, table.header)) + r" \\"
    body = "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
    notes = "\n".join(f"% {_line(note)}" for note in table.notes)
    needs = r"needs \usepackage{booktabs} and, for Japanese, a class for it"
    return f"% {_line(table.title)}; {needs}\n{body}\n{notes}\n"


def _line(text: str) -> str:
    """A comment ends with its line: what somebody else wrote may hold several."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """Special signs escaped; what no engine sets (control characters, bytes that are no text) as a
    box; a leading [ or * kept from `\\\\`."""
    whole = "".join(SIGNS.get(char, char if _can_be_set(char) else "□") for char in text)
    return "{}" + whole if whole[:1] in ("[", "*") else whole


def _can_be_set(char: str) -> bool:
    return char != "\ufffd" and unicodedata.category(char) not in ("Cc", "Cf", "Cn", "Co", "Cs")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a row's columns are made from."""

    result: StudyResult
    findings: Sequence[Finding]
    entry: Entry


@dataclass(frozen=True, kw_only=True)
class PaperColumn:
    """A column of the table for a paper: its head, how LaTeX sets it, its text in a row."""

    head: str
    align: str
    text: Callable[[Given], str | None]


def paper_table(
    result: StudyResult, findings: Sequence[Finding], columns: Sequence[str] = ()
) -> str:
    """The scores as `table` with caption and label, in points with one decimal, a group of rows for
    each task; needs booktabs and siunitx.

    Raises:
        ConfigError: a column that is not known.
    """
    for name in columns:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS)
            raise ConfigError(f'--columns: no column "{name}".{hint} Known: {", ".join(COLUMNS)}')
    seeds = max((len(result.seeds(cell)) for cell in result.chosen.values()), default=1)
    spread = "pm" if seeds > 1 else "interval"
    reference = reference_of(result)
    names = list(columns) or ["score", spread, *(["difference"] if reference else [])]
    shown = [COLUMNS[name] for name in names]
    lines = [
        "% " + r"needs \usepackage{booktabs,siunitx} and, for Japanese, a class for it",
        r"\begin{table}[t]",
        r"\centering\small",
        rf"\caption{{{_caption(names, seeds, reference)}}}",
        rf"\label{{tab:{_label(result.study.name)}}}",
        rf"\begin{{tabular}}{{l{''.join(column.align for column in shown)}}}",
        r"\toprule",
        " & ".join(["Method", *(f"{{{column.head}}}" for column in shown)]) + r" \\",
    ]
    for choice in result.study.tasks:
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(shown) + 1}}}{{l}}{{{escaped(choice.label)}}} \\",
        ]
        for entry in (entry for entry in entries_of(result) if entry.task == choice.label):
            given = Given(result=result, findings=findings, entry=entry)
            cells = [column.text(given) or "{--}" for column in shown]
            lines.append(" & ".join([rf"\quad {escaped(entry.name)}", *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _caption(names: Sequence[str], seeds: int, reference: str | None) -> str:
    parts = ["Scores on test in points"]
    if "pm" in names:
        parts.append(rf"$\pm$: standard deviation over {seeds} seeds")
    if "interval" in names:
        parts.append(r"brackets: 95\,\% confidence interval")
    if "difference" in names and reference:
        against = escaped(reference)
        parts.append(rf"difference: to {against}, paired, with its 95\,\% confidence interval")
    return "; ".join(parts) + "."


def _label(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)


def _score(given: Given) -> str | None:
    over = _over_seeds(given)
    return None if over is None else f"{100 * over[0]:.1f}"


def _over_seeds(given: Given) -> tuple[float, float, float, float] | None:
    """Mean, lower and upper end, standard deviation; None without a test, or with a failed seed."""
    cell = given.entry.cell
    records = given.result.seeds(cell) if cell is not None else []
    if cell is None or not records or lost_seeds(given.result, cell):
        return None
    over = pooled(records)
    return over.means[over.main], over.low, over.high, over.spread


def _pm(given: Given) -> str | None:
    over, cell = _over_seeds(given), given.entry.cell
    if over is None or cell is None or len(given.result.seeds(cell)) < 2:
        return None
    return rf"$\pm${100 * over[3]:.1f}"


def _interval(given: Given) -> str | None:
    over = _over_seeds(given)
    return None if over is None else f"[{100 * over[1]:.1f}, {100 * over[2]:.1f}]"


def _difference(given: Given) -> str | None:
    reference = reference_of(given.result)
    numbers = numbers_of(difference_cell(given.entry.key, reference, given.findings))
    if len(numbers) < 3:
        return None
    value, low, high = (f"{number:+.1f}" for number in numbers if isinstance(number, float))
    return f"${value}$ [${low}$, ${high}$]"


def _of_test(given: Given, number: Callable[[float, int], str]) -> str | None:
    record = given.entry.record
    test = record.scores("test") if record is not None else None
    return None if test is None else number(test.candidate_rate or 0.0, test.main.n)


def _cost(given: Given, name: str) -> str | None:
    record = given.entry.record
    if record is None or not record.outcome.trainable:
        return None
    memory, step = peak_of_one(record), exclusive_step_s(record)
    texts = {
        "params": f"{record.outcome.trainable / 1e6:.2f}",
        "memory": None if memory is None else f"{memory / 2**30:.2f}",
        "step": None if step is None else f"{1000 * step:.1f}",
    }
    return texts[name]


COLUMNS: Mapping[str, PaperColumn] = {
    "score": PaperColumn(head="Score", align="S[table-format=2.1]", text=_score),
    "pm": PaperColumn(head=r"$\pm$", align="c", text=_pm),
    "interval": PaperColumn(head=r"95\,\% CI", align="c", text=_interval),
    "difference": PaperColumn(head="Difference", align="c", text=_difference),
    "n": PaperColumn(
        head="$n$",
        align="S[table-format=5.0]",
        text=lambda given: _of_test(given, lambda _, n: str(n)),
    ),
    "seeds": PaperColumn(
        head="Seeds",
        align="S[table-format=2.0]",
        text=lambda given: (
            str(len(given.result.seeds(given.entry.cell))) if given.entry.cell else None
        ),
    ),
    "valid": PaperColumn(
        head=r"Valid (\%)",
        align="S[table-format=3.1]",
        text=lambda given: _of_test(given, lambda rate, _: f"{100 * rate:.1f}"),
    ),
    "params": PaperColumn(
        head="Params (M)", align="S[table-format=4.2]", text=lambda given: _cost(given, "params")
    ),
    "memory": PaperColumn(
        head="Memory (GiB)", align="S[table-format=3.2]", text=lambda given: _cost(given, "memory")
    ),
    "step": PaperColumn(
        head="ms/step", align="S[table-format=4.1]", text=lambda given: _cost(given, "step")
    ),
}
