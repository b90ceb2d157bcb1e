"""What the command line prints of results: scores, reports, JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.errors import ConfigError, TsugikiError, reason_of
from tsugiki.words import Language, called, in_language, recognised, say

if TYPE_CHECKING:
    from tsugiki.data.tasks import Task
    from tsugiki.report.compare import Comparison
    from tsugiki.report.material import Material
    from tsugiki.runs.answer_modes import ModeScore
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.rescore import RuleScore
    from tsugiki.study.cells import StudyResult


SHOWN_CHARS = 40  # of a field's text in a command


def print_damaged(damaged: Sequence[str], language: Language) -> None:
    """Runs that cannot be read, on standard error: what is printed of the others stays whole."""
    for said in damaged:
        print(f"tsugiki: {in_language(language, said)}", file=sys.stderr)


def print_note(said: str, language: Language) -> None:
    """A remark, on standard error."""
    print(say(language, "terminal.note", note=said), file=sys.stderr)


def print_json(content: object) -> None:
    print(json.dumps(content, ensure_ascii=False, indent=1))


def print_report(
    result: StudyResult,
    out: Path,
    again: str,
    as_json: bool,
    lang: Language = "en",
    columns: Sequence[str] = (),
) -> bool:
    """Writes and prints a study's report; `again` is the command that goes on with it. False when
    something is missing or did not learn."""
    from tsugiki.cli.progress import show_tables
    from tsugiki.report.material import gather
    from tsugiki.report.numbers import comparison_rows, results_rows
    from tsugiki.report.tables import all_tables
    from tsugiki.report.write import write_report

    material = gather(result, again)
    lacking = material.shortfalls(lang)
    tables, where = all_tables(material), None
    try:
        where = write_report(material, out, lang, tables, columns)
    except ConfigError:
        raise  # a column that is not known
    except (OSError, TsugikiError) as broken:
        lacking.append(say(lang, "terminal.no_report", reason=reason_of(broken)))
    if as_json:
        print_json(
            {
                "report": str(where) if where else None,
                "findings": material.statements(lang),
                "verdicts": [finding.to_json() for finding in material.findings],
                "missing": lacking,
                "results": [asdict(row) for row in results_rows(material)],
                "comparison": [asdict(row) for row in comparison_rows(material)],
            }
        )
        return not lacking
    show_tables(tables, lang)
    print("\n".join(material.statements(lang)))
    if where is not None:
        pages = f"{where.parent / 'report.ja.html'} · {where.parent / 'report.en.html'}"
        print(say(lang, "terminal.report", pages=pages))
    _print_next(material, lacking, again, lang)
    return not lacking


def print_paper(result: StudyResult, out: Path, again: str, language: Language) -> None:
    """Writes the paper's own tables from the study's runs."""
    from tsugiki.report.material import gather
    from tsugiki.report.paper_page import write_paper

    pages = " · ".join(map(str, write_paper(gather(result, again), out)))
    print(say(language, "terminal.paper", pages=pages), file=sys.stderr)


def _print_next(material: Material, lacking: Sequence[str], again: str, language: Language) -> None:
    """What one may do now; what is missing, and whether the same command may help."""
    _print_try(material, language)
    for line in lacking[:-1]:
        print(say(language, "terminal.not_whole", line=line))
    if not lacking:
        return
    poor = [
        standing
        for standing in material.standings.values()
        if standing.kind == "failed" or (standing.kind == "no better" and standing.tuned)
    ]
    # Methods that did not learn would end the same way again.
    key = "tried_again" if len(lacking) > len(poor) else "other_settings"
    advice = say(language, f"terminal.{key}", command=again)
    print(say(language, "terminal.not_whole_at_last", line=lacking[-1], advice=advice))


def _print_try(material: Material, language: Language) -> None:
    """A command that runs as it is printed: the first method that was tuned answers a row of
    validation, by its fields; if none was, the untouched base does. Where the task cannot be read
    or the weights are elsewhere: a look at the run."""
    from tsugiki.runs.methods import method_of

    result = material.result
    chosen = [(cell.key[1], result.record(cell)) for cell in result.chosen.values()]
    done = [
        (task, record)
        for task, record in chosen
        if record and record.status == "done" and method_of(record.config).answering.writes
    ]
    done.sort(key=lambda each: not method_of(each[1].config).tuned)
    if not done:
        return
    label, record = done[0]
    task, folder = material.tasks.get(label), shlex.quote(str(record.folder))
    lost = method_of(record.config).trains and not (record.folder / "weights").is_dir()
    if task is None or lost:
        print(say(language, "terminal.next", command=f"tsugiki show {folder}"))
        return
    fields = " ".join(f"--field {shlex.quote(pair)}" for pair in _fields_of_a_row(task))
    command = f"tsugiki generate {folder} {fields}"
    print(say(language, "terminal.generate_next", command=command, folder=folder))


def _fields_of_a_row(task: Task) -> list[str]:
    """name=value for what a row of validation is asked by, long texts cut, each on one line."""
    row = task.examples["validation"][0]
    said = [text for role, text in row.turns if role == "user"]
    candidates = dict(zip(task.spec.choices, row.candidates, strict=False))
    values = {**row.fields, **candidates, "user": said[-1] if said else ""}
    return [f"{name}={_brief(values[name])}" for name in task.spec.asked_by]


def _brief(text: str) -> str:
    return " ".join(text.split())[:SHOWN_CHARS]


def print_scores(record: RunRecord, part: str, language: Language = "en") -> None:
    """The scores of a part that was scored, and the classes of its answers."""
    from tsugiki.runs.symptoms import symptoms_of

    scores = record.scored(part)
    for score in scores.scores:
        print(
            f"{part} {score.name}: {score.value:.4f} [{score.low:.4f}, {score.high:.4f}] "
            f"n={score.n} ({score.signature})"
        )
    counts = scores.failures
    print(say(language, "terminal.answers", classes=classes_text(counts, language)))
    for symptom in symptoms_of(record, scores):
        print(say(language, "terminal.symptom", symptom=symptom))
    print(say(language, "terminal.every_answer", file=record.folder / scores.file))


def classes_text(counts: Mapping[str, int], language: Language) -> str:
    """How many answers are of each class."""
    return ", ".join(f"{called(language, 'failure', name)} {n}" for name, n in counts.items())


def print_rules(rows: Sequence[RuleScore], as_json: bool, language: Language) -> None:
    """Scores of kept answers by rule."""
    from tsugiki.cli.progress import show_tables
    from tsugiki.report.table import Content, Said, Table, column, phrase

    if as_json:
        print_json([asdict(row) for row in rows])
        return
    cells = list[tuple[Content, ...]]()
    for row in rows:
        bounds = "" if row.low is None else f" [{row.low:.4f}, {row.high:.4f}]"
        cells.append((row.rule, row.labels, row.score, f"{row.value:.4f}{bounds}", row.n))
    signatures = dict.fromkeys(row.signature for row in rows if "|" in row.signature)
    names = ("rule", "labels", "score", "value", "n")
    columns = tuple(column(name, "text", f"label.{name}") for name in names)
    notes = tuple(Said(en=signature, ja=signature) for signature in signatures)
    title = phrase("terminal.rules")
    table = Table(name="rules", title=title, columns=columns, rows=tuple(cells), notes=notes)
    show_tables([table], language)


def print_answer_modes(rows: Sequence[ModeScore], as_json: bool, language: Language) -> None:
    """Three scores from one checkpoint."""
    from tsugiki.cli.progress import show_tables
    from tsugiki.report.table import Content, Table, column, phrase

    if as_json:
        print_json([asdict(row) for row in rows])
        return
    cells = list[tuple[Content, ...]]()
    for row in rows:
        gain = p = "-"
        if row.gain is not None:
            gain = f"{row.gain:+.4f} [{row.gain_low:+.4f}, {row.gain_high:+.4f}]"
            p = f"{row.p:.3g}"
        value = f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]"
        cells.append((row.mode, value, gain, p, row.n))
    names = ("answer_mode", "score", "against_free", "mcnemar_p", "n")
    columns = tuple(column(name, "text", f"label.{name}") for name in names)
    title, notes = phrase("terminal.modes", score=rows[0].score), (phrase("terminal.modes_note"),)
    table = Table(name="answer_modes", title=title, columns=columns, rows=tuple(cells), notes=notes)
    show_tables([table], language)


def record_json(record: RunRecord) -> dict[str, object]:
    """What a run was asked, with what, and what came of it."""
    return {
        "folder": str(record.folder),
        "config": record.config.model_dump(mode="json", exclude_none=True),
        "provenance": record.provenance.model_dump(mode="json", exclude_none=True),
        "outcome": record.outcome.model_dump(mode="json", exclude_none=True),
    }


def print_record(record: RunRecord, as_json: bool, language: Language) -> None:
    """What a run was asked, with what, and what came of it."""
    if as_json:
        print_json(record_json(record))
        return
    there = record.provenance
    reason = in_language(language, recognised(record.outcome.reason))
    status = say(language, f"run_status.{record.status}")
    print(f"{record.folder}: {status}" + (f" ({reason})" if reason else ""))
    sections = record.config.model_dump(mode="json", exclude_none=True)
    for name, settings in sections.items():
        text = settings
        if isinstance(settings, dict):
            text = ", ".join(f"{key} {value}" for key, value in settings.items())
        print(f"  {name:8} {text}")
    said = {"device": there.device, "rows": there.rows, "sha256": there.model_sha256[:16]}
    print(say(language, "terminal.made_on", **said))
    for part in dict.fromkeys(scores.part for scores in record.outcome.scores):
        print_scores(record, part, language)
    tested = record.scores("test") is not None
    other = (
        f"compare {record.folder} ANOTHER-RUN" if tested else f"score {record.folder} --part test"
    )
    print(say(language, "terminal.next", command=f"tsugiki {other}"))


def print_comparison(
    comparison: Comparison, part: str, rows: int, as_json: bool, language: Language
) -> None:
    """Paired difference of two runs, and some of the answers that changed."""
    if as_json:
        print_json(asdict(comparison))
        return
    numbers = {name: value for name, value in vars(comparison).items() if name != "changed"}
    print(say(language, "terminal.compared", part=part, **numbers))
    if comparison.mcnemar is not None:
        print(say(language, "terminal.mcnemar", **asdict(comparison.mcnemar)))
    count = len(comparison.changed)
    print(say(language, "terminal.changed", count=count) + (":" if rows and count else ""))
    for change in comparison.changed[:rows]:
        words = asdict(change)
        print("  " + say(language, "terminal.change", **words))
