"""Commands on finished runs: score, ls, show, compare, generate, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tsugiki.cli.app import DEFAULT_OUT, AsJson, Changes, Out, app, reads_records_alone, run_folder
from tsugiki.cli.printing import (
    print_answer_modes,
    print_comparison,
    print_damaged,
    print_json,
    print_record,
    print_rules,
    print_scores,
)
from tsugiki.errors import ConfigError, TsugikiError, did_you_mean

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord


OtherModel = Annotated[
    Optional[str],
    typer.Option(
        help="Instead of a run: any model as it is (a folder, a merged one too, a Hub id, or "
        "builtin)."
    ),
]
Rules = Annotated[
    Optional[str],
    typer.Option(
        help="Score the kept answers by other tools' rules: all, or names joined by commas. No "
        "model is loaded."
    ),
]


@app.command(
    epilog="Examples: tsugiki score RUN --part test   ·   tsugiki score RUN --rules all   ·   "
    "tsugiki score RUN --rules xlsum,flexeval --part validation   ·   tsugiki score --model "
    "llm-jp/llm-jp-3-1.8b --task jnli --shots 4"
)
def score(
    folder: Annotated[Optional[Path], typer.Argument(help="A run folder.")] = None,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rules: Rules = None,
    modes: Annotated[
        bool,
        typer.Option(
            "--answer-modes",
            help="Also by log-likelihood and by generation among the candidates only: form against "
            "knowledge.",
        ),
    ] = False,
    old_option: Annotated[bool, typer.Option("--ways", hidden=True)] = False,
    model: OtherModel = None,
    task: Annotated[Optional[str], typer.Option(help="With --model: a task.")] = None,
    adapter: Annotated[
        Optional[Path], typer.Option(help="With --model: a PEFT adapter folder on it.")
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, help="With --model: worked examples before every prompt.")
    ] = 0,
    out: Out = DEFAULT_OUT,
    changes: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Score a finished run, or any model as it is, on one part of a task; a part that was scored is
    only printed."""
    from tsugiki.data.tasks import SPLITS
    from tsugiki.errors import did_you_mean
    from tsugiki.runs.reading import read_record

    if part not in SPLITS:
        raise ConfigError(f'--part "{part}": no such part.{did_you_mean(part, SPLITS)}')
    if old_option:
        print(
            "note: --ways is called --answer-modes now; the old name is still read", file=sys.stderr
        )
    if rules and (modes or old_option):
        raise ConfigError(
            "--rules, --answer-modes: one of them at a time: the first scores kept answers, the "
            "second asks the model"
        )
    if folder is None:
        from tsugiki.cli.running import run_one

        folder = run_one(_run_of(model, task, adapter, shots), "score", changes, out).folder
    elif model or task or adapter or shots or changes:
        raise ConfigError(
            "--model, --task, --adapter, --shots, --set: a run has its own; drop them"
        )
    if rules:
        from tsugiki.runs.rescore import rescore

        print_rules(rescore(read_record(run_folder(folder)), part, rules), as_json)
        return
    _score(run_folder(folder), part, modes or old_option, as_json)


def _run_of(
    model: str | None, task: str | None, adapter: Path | None, shots: int
) -> dict[str, object]:
    """What `score --model` asks for, as a run file would."""
    if model is None or task is None:
        raise ConfigError("score: name a run folder, or --model and --task")
    kind = {"adapter": str(adapter)} if adapter else {"method": "base"}
    given: dict[str, object] = {"model": {"path": model}, "task": {"name": task}, **kind}
    return {**given, "shots": shots} if shots else given


def _score(folder: Path, part: str, modes: bool, as_json: bool) -> None:
    from tsugiki.cli.progress import Display
    from tsugiki.runs.finished import score_run
    from tsugiki.runs.reading import read_record

    with Display() as display:
        if modes:
            from tsugiki.runs.answer_modes import answer_modes

            rows = answer_modes(read_record(folder), part, display.events)
        record = score_run(read_record(folder), part, display.events)
    if modes:
        print_answer_modes(rows, as_json)
    elif as_json:
        print_json(record.scored(part).model_dump(mode="json", exclude_none=True))
    else:
        print_scores(record, part)
        print(f"Next: tsugiki compare {folder} ANOTHER-RUN --part {part}")


@app.command("ls", epilog="Example: tsugiki ls --out tsugiki-runs")
def list_runs(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """The runs under a root folder: status, scores, training time."""
    reads_records_alone()
    from tsugiki.cli.progress import show_tables
    from tsugiki.report.cells import number
    from tsugiki.report.compare import list_row
    from tsugiki.report.table import Said, Table, column
    from tsugiki.runs.store import Store

    records, damaged = Store(out).read()
    rows = [list_row(record) for record in records]
    print_damaged(damaged)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        raise TsugikiError(
            f"{out}: no runs there. Run a study first (tsugiki demo), or name the root folder of "
            "your runs with --out"
        )
    cells = [
        (row.run, row.status, number(row.train_s, ",.0f"), row.validation, row.test) for row in rows
    ]
    names = ("run", "status", "training_s", "validation", "test")
    columns = tuple(column(name, "text", f"label.{name}") for name in names)
    folder = str(out / "runs")
    title = Said(en=folder, ja=folder)
    show_tables([Table(name="runs", title=title, columns=columns, rows=tuple(cells))])
    print(f"Next: tsugiki show {out / 'runs' / rows[0].run}")


@app.command(epilog="Example: tsugiki show tsugiki-runs/runs/jnli-…")
def show(
    folder: Annotated[Path, typer.Argument(help="A run folder.")], as_json: AsJson = False
) -> None:
    """What a run was asked, with what, and what happened."""
    from tsugiki.runs.reading import read_record

    record = read_record(run_folder(folder))
    print_record(record, as_json)


@app.command(
    epilog="Example: tsugiki compare tsugiki-runs/runs/jnli-…-lora-… "
    "tsugiki-runs/runs/jnli-…-full-…"
)
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder.")],
    second: Annotated[Path, typer.Argument(help="Another one, scored on the same examples.")],
    part: Annotated[str, typer.Option(help="validation or test.")] = "test",
    rows: Annotated[int, typer.Option(min=0, help="Changed answers to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Paired difference of two runs, and the answers that changed."""
    from tsugiki.report.compare import compare_runs
    from tsugiki.runs.reading import read_record

    comparison = compare_runs(read_record(run_folder(first)), read_record(run_folder(second)), part)
    print_comparison(comparison, part, rows, as_json)
    if not as_json:
        print(f"Next: tsugiki show {first}")


@app.command(
    epilog="Examples: tsugiki predict RUN new.csv   ·   tsugiki predict RUN new.parquet --to "
    "answers.jsonl   ·   tail -f rows.jsonl | tsugiki predict RUN -"
)
def predict(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="Rows with the task's fields (.jsonl, .json, .csv, .parquet), or - for JSON "
            "objects on standard input, each answered as it comes."
        ),
    ],
    to: Annotated[
        Optional[Path],
        typer.Option(
            "--to",
            help="New file (.jsonl, .csv, .parquet; default: NAME-answers beside the rows).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer new rows by a finished run, with its own prompt: the answer, why it is none, and each
    candidate's log-likelihood are added to a row's columns.

    A target is not needed; where it stands there, answers are compared with it. A call that was
    stopped goes on when it is given again.
    """
    from tsugiki.cli.progress import Display
    from tsugiki.runs.new_rows import label_file, label_lines
    from tsugiki.runs.reading import read_record

    record = read_record(run_folder(folder))
    if str(source) == "-":
        if to is not None:
            raise ConfigError("--to: rows from standard input are answered on standard output")
        for row in label_lines(record, sys.stdin.buffer, "standard input"):
            print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    with Display() as display:
        seen = label_file(record, source, to, display.events)
    if as_json:
        print_json(asdict(seen))
        return
    earlier = f" ({seen.earlier} of them by an earlier call)" if seen.earlier else ""
    print(f"{seen.file}: {seen.rows} rows answered{earlier}")
    if seen.known:
        print(f"Right: {seen.right} of {seen.known} whose target is known")
    if seen.failures:
        print("Failures: " + ", ".join(f"{name} {n}" for name, n in seen.failures.items()))


@app.command(
    epilog="Examples: tsugiki generate RUN --text 文1:…[SEP]文2:…[SEP]   ·   tsugiki generate RUN "
    "--field sentence1=… --field sentence2=…   ·   echo 文 | tsugiki generate RUN"
)
def generate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    text: Annotated[
        Optional[str],
        typer.Option(help="The prompt; without it each line of standard input is one."),
    ] = None,
    field: Annotated[
        Optional[list[str]],
        typer.Option(help="A field of the task, name=value: the run's own prompt is made of them."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Let a trained checkpoint answer your own text, greedily.

    A text is the whole prompt, in the form the run was trained on ([SEP] included): see `tsugiki
    tasks show TASK`. With --field the run writes that prompt itself. Many rows: tsugiki predict.
    """
    from tsugiki.runs.reading import read_record
    from tsugiki.runs.use import answer_texts, other_ending

    if field:
        if text is not None:
            raise ConfigError("--text, --field: one of them: --text is the whole prompt")
        print(_answer_of_fields(read_record(run_folder(folder)), field))
        return
    lines = (
        [text] if text is not None else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    )
    if not any(line.strip() for line in lines):
        raise ConfigError("generate: no text given. Use --text, or write lines to standard input")
    record = read_record(run_folder(folder))
    if (said := other_ending(record, lines)) is not None:
        print(f"note: {said}", file=sys.stderr)
    for answer in answer_texts(record, lines, max_new_tokens):
        print(answer)


def _answer_of_fields(record: RunRecord, given: list[str]) -> str:
    from tsugiki.runs.new_rows import Answerer, unchanged_task

    task, row = unchanged_task(record), {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f'--field "{pair}": write name=value')
        if name not in task.spec.fields:
            known = did_you_mean(name, task.spec.fields)
            raise ConfigError(f'--field "{name}": no such field.{known}')
        row[name] = value
    answerer = Answerer(record, task)
    tokens, left_out = answerer.tokens([(1, row)], "--field")
    if left_out:
        raise ConfigError("--field: the prompt does not fit into the run's length")
    return str(answerer.answers(tokens)[0].prediction)
