"""Commands on finished runs: score, show, compare, predict, generate."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tsugiki.cli.app import DEFAULT_OUT, AsJson, Changes, Out, app, run_folder
from tsugiki.cli.language import Lang, language_of
from tsugiki.cli.printing import (
    classes_text,
    print_answer_modes,
    print_comparison,
    print_json,
    print_note,
    print_record,
    print_rules,
    print_scores,
)
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.words import Message, say

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord
    from tsugiki.words import Language


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
    lang: Lang = None,
) -> None:
    """Score a finished run, or any model as it is, on one part of a task; a part that was scored is
    only printed."""
    from tsugiki.data.tasks import SPLITS
    from tsugiki.runs.reading import read_record

    language = language_of(lang, as_json)
    if part not in SPLITS:
        hint = did_you_mean(part, SPLITS)
        raise ConfigError(Message("error.no_part", name=part, hint=hint))
    if old_option:
        print_note(Message("note.renamed", old="--ways", new="--answer-modes"), language)
    if rules and (modes or old_option):
        raise ConfigError(
            "--rules, --answer-modes: one of them at a time: the first scores kept answers, the "
            "second asks the model"
        )
    if folder is None:
        from tsugiki.cli.running import run_one

        given = _run_of(model, task, adapter, shots)
        folder = run_one(given, "score", changes, out, language).folder
    elif model or task or adapter or shots or changes:
        raise ConfigError(Message("error.run_has_own"))
    if rules:
        from tsugiki.runs.rescore import rescore

        print_rules(rescore(read_record(run_folder(folder)), part, rules), as_json, language)
        return
    _score(read_record(run_folder(folder)), part, modes or old_option, as_json, language)


def _run_of(
    model: str | None, task: str | None, adapter: Path | None, shots: int
) -> dict[str, object]:
    """What `score --model` asks for, as a run file would."""
    if model is None or task is None:
        raise ConfigError(Message("error.run_or_model"))
    kind = {"adapter": str(adapter)} if adapter else {"method": "base"}
    given: dict[str, object] = {"model": {"path": model}, "task": {"name": task}, **kind}
    return {**given, "shots": shots} if shots else given


def _score(record: RunRecord, part: str, modes: bool, as_json: bool, language: Language) -> None:
    from tsugiki.cli.progress import Display
    from tsugiki.runs.reading import read_record

    folder = record.folder
    with Display(language, folder.name) as display:
        from tsugiki.runs.finished import score_run

        if modes:
            from tsugiki.runs.answer_modes import answer_modes

            rows = answer_modes(record, part, display.events)
        record = score_run(read_record(folder), part, display.events)
    if modes:
        print_answer_modes(rows, as_json, language)
    elif as_json:
        print_json(record.scored(part).model_dump(mode="json", exclude_none=True))
    else:
        print_scores(record, part, language)
        print(say(language, "terminal.scored", folder=folder, part=part))


@app.command(epilog="Example: tsugiki show tsugiki-runs/runs/jnli-…")
def show(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """What a run was asked, with what, and what happened."""
    from tsugiki.runs.reading import read_record

    language = language_of(lang, as_json)
    print_record(read_record(run_folder(folder)), as_json, language)


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
    lang: Lang = None,
) -> None:
    """Paired difference of two runs, and the answers that changed."""
    from tsugiki.cli.first_look import opening
    from tsugiki.report.compare import compare_runs
    from tsugiki.runs.reading import read_record

    language = language_of(lang, as_json)
    ours, theirs = read_record(run_folder(first)), read_record(run_folder(second))
    opening(f"{ours.folder.name}, {theirs.folder.name}", language)  # resampling takes a second
    comparison = compare_runs(ours, theirs, part)
    print_comparison(comparison, part, rows, as_json, language)
    if not as_json:
        print(say(language, "terminal.next", command=f"tsugiki show {first}"))


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
    lang: Lang = None,
) -> None:
    """Answer new rows by a finished run, with its own prompt: the answer, why it is none, and each
    candidate's log-likelihood are added to a row's columns.

    A target is not needed; where it stands there, answers are compared with it. A call that was
    stopped goes on when it is given again.
    """
    from tsugiki.runs.reading import read_record

    language = language_of(lang, as_json)
    record = read_record(run_folder(folder))
    piped = str(source) == "-"
    if piped and to is not None:
        raise ConfigError("--to: rows from standard input are answered on standard output")
    if not piped and not source.exists():
        raise ConfigError(Message("error.no_file", path=source))
    if piped:
        from tsugiki.cli.first_look import opening

        opening(record.folder.name, language)
        from tsugiki.runs.new_rows import label_lines

        for row in label_lines(record, sys.stdin.buffer, "standard input"):
            print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    _predict(record, source, to, as_json, language)


def _predict(
    record: RunRecord, source: Path, to: Path | None, as_json: bool, language: Language
) -> None:
    from tsugiki.cli.progress import Display

    with Display(language, record.folder.name) as display:
        from tsugiki.runs.new_rows import label_file

        seen = label_file(record, source, to, display.events)
    if as_json:
        print_json(asdict(seen))
        return
    print(say(language, "terminal.predicted", file=seen.file, rows=seen.rows))
    if seen.earlier:
        print(say(language, "terminal.predicted_earlier", earlier=seen.earlier))
    if seen.known:
        print(say(language, "terminal.predicted_right", right=seen.right, known=seen.known))
    if seen.failures:
        print(say(language, "terminal.classes", classes=classes_text(seen.failures, language)))


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
        typer.Option(
            help="A field of the task, name=value: the run's own prompt is made of them. Of a "
            "conversation: user=…"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    lang: Lang = None,
) -> None:
    """Let a trained checkpoint answer your own text, greedily.

    A text is the whole prompt, in the form the run was trained on ([SEP] included): see `tsugiki
    tasks show TASK`. With --field the run writes that prompt itself. Many rows: tsugiki predict.
    """
    from tsugiki.cli.first_look import opening
    from tsugiki.runs.reading import read_record

    language = language_of(lang)
    record = read_record(run_folder(folder))
    if field and text is not None:
        raise ConfigError(Message("error.text_or_field"))
    lines = [] if field else [text] if text is not None else _lines_of_input()
    if not field and not any(line.strip() for line in lines):
        raise ConfigError(Message("error.no_text"))
    opening(record.folder.name, language)
    if field:
        print(_answer_of_fields(record, field))
        return
    from tsugiki.runs.use import answer_texts, other_ending

    if (said := other_ending(record, lines)) is not None:
        print_note(said, language)
    for answer in answer_texts(record, lines, max_new_tokens):
        print(answer)


def _lines_of_input() -> list[str]:
    return [line.rstrip("\n") for line in sys.stdin if line.strip()]


def _answer_of_fields(record: RunRecord, given: list[str]) -> str:
    from tsugiki.runs.new_rows import Answerer, row_of_fields, unchanged_task

    task, row = unchanged_task(record), dict[str, str]()
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(Message("error.field_form", given=pair))
        if name not in task.spec.asked_by:
            hint = did_you_mean(name, task.spec.asked_by)
            raise ConfigError(Message("error.no_option_field", name=name, hint=hint))
        row[name] = value
    answerer = Answerer(record, task)
    tokens, left_out = answerer.tokens([(1, row_of_fields(task.spec, row))], "--field")
    if left_out:
        raise ConfigError("--field: the prompt does not fit into the run's length")
    return str(answerer.answers(tokens)[0].prediction)
