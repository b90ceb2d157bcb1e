"""The command `ls`: the runs under a root folder, each name whole."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tsugiki.cli.app import DEFAULT_OUT, AsJson, Out, app, reads_records_alone
from tsugiki.cli.language import Lang, language_of
from tsugiki.cli.printing import print_damaged, print_json
from tsugiki.errors import ConfigError, TsugikiError, did_you_mean
from tsugiki.words import Message, say

if TYPE_CHECKING:
    from tsugiki.report.compare import Listed
    from tsugiki.words import Language

Sort = Annotated[
    str,
    typer.Option(
        help="time (newest last), validation, test (best last), or name; what has no score comes "
        "first."
    ),
]


@app.command(
    "ls",
    epilog="Examples: tsugiki ls --out tsugiki-runs   ·   tsugiki ls --task jnli --method lora "
    "--sort validation",
)
def list_runs(
    out: Out = DEFAULT_OUT,
    sort: Sort = "time",
    task: Annotated[Optional[str], typer.Option(help="Only runs on this task.")] = None,
    model: Annotated[Optional[str], typer.Option(help="Only runs of this model.")] = None,
    method: Annotated[Optional[str], typer.Option(help="Only lora, full, encoder or base.")] = None,
    status: Annotated[
        Optional[str], typer.Option(help="Only running, stopped, done, failed or pruned.")
    ] = None,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """The runs under a root folder: status, scores, training time."""
    reads_records_alone()
    from tsugiki.report.compare import SORTED, list_row
    from tsugiki.runs.store import Store

    language = language_of(lang, as_json)
    if sort not in SORTED:
        hint = did_you_mean(sort, SORTED)
        raise ConfigError(Message("error.no_order", name=sort, hint=hint))
    records, damaged = Store(out).read()
    every = [list_row(record) for record in records]
    wanted = {"task": task, "model": model, "method": method, "status": status}
    rows = sorted(_chosen(every, wanted), key=SORTED[sort])
    print_damaged(damaged, language)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        raise TsugikiError(Message("terminal.no_runs", out=out))
    _print(rows, out, language)
    last = rows[-1].run
    there = last if out == DEFAULT_OUT else shlex.quote(str(out / "runs" / last))
    print(say(language, "terminal.next", command=f"tsugiki show {there}"))


def _chosen(rows: Sequence[Listed], wanted: dict[str, str | None]) -> list[Listed]:
    """The rows that have every value that is wanted. Raises `ConfigError` for one that none has."""
    kept = list(rows)
    for name, value in wanted.items():
        known = {str(getattr(row, name)) for row in rows}
        if value is not None and rows and value not in known:
            hint = did_you_mean(value, known)
            raise ConfigError(Message("error.no_such_run", option=name, value=value, hint=hint))
        kept = [row for row in kept if value is None or getattr(row, name) == value]
    if rows and not kept:
        given = " ".join(f"--{name} {value}" for name, value in wanted.items() if value)
        raise ConfigError(Message("error.no_run_of_all", given=given))
    return kept


def _print(rows: Sequence[Listed], out: Path, language: Language) -> None:
    """On a terminal each name stands in a line of its own, which no column cuts, so that it can be
    copied whole; into a pipe or file a table."""
    from tsugiki.cli.progress import is_drawn, show_tables
    from tsugiki.report.cells import number
    from tsugiki.report.table import Said, Table, column

    if is_drawn():
        for row in rows:
            print(row.run)
            print("    " + " · ".join(_facts(row, language)))
        return
    cells = [
        (row.run, row.status, number(row.train_s, ",.0f"), row.validation, row.test) for row in rows
    ]
    names = ("run", "status", "training_s", "validation", "test")
    columns = tuple(column(name, "text", f"label.{name}") for name in names)
    folder = str(out / "runs")
    title = Said(en=folder, ja=folder)
    show_tables([Table(name="runs", title=title, columns=columns, rows=tuple(cells))], language)


def _facts(row: Listed, language: Language) -> list[str]:
    """What is known of a run, for a line of its own."""
    facts = [say(language, f"run_status.{row.status}")]
    if row.started:
        facts.append(f"{datetime.fromisoformat(row.started).astimezone():%Y-%m-%d %H:%M}")
    if row.train_s is not None:
        facts.append(say(language, "terminal.seconds", seconds=row.train_s))
    for part in ("validation", "test"):
        if (score := getattr(row, part)) is not None:
            facts.append(f"{say(language, f'label.{part}')} {score}")
    return facts
