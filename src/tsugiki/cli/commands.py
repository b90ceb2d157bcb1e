"""The command line: parses and prints, nothing else. Heavy imports wait until a command needs
them."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional, TextIO

import typer

from tsugiki.cli.app import (
    DEFAULT_OUT,
    AsJson,
    Changes,
    Out,
    Track,
    app,
    end,
    reads_records_alone,
)
from tsugiki.cli.language import Lang, language_of
from tsugiki.cli.printing import (
    print_damaged,
    print_json,
    print_paper,
    print_report,
    print_scores,
    record_json,
)
from tsugiki.config.old_spellings import OldSpelling
from tsugiki.errors import ConfigError, RunError, TsugikiError, without_secrets
from tsugiki.report.words import Language, say

if TYPE_CHECKING:
    from tsugiki.config.run import RunConfig
    from tsugiki.config.study import StudySpec


def main() -> None:
    """Entry point: the user's errors become one line and exit code 2, Ctrl-C exit code 130."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A Japanese Windows would pipe in CP932, which lacks some of our signs.
            stream.reconfigure(encoding="utf-8")
    warnings.showwarning = _show_warning
    from tsugiki.cli import export_commands, list_command, run_commands, task_commands

    there = {each.app for each in (export_commands, list_command, run_commands, task_commands)}
    assert there == {app}, "their commands are there when imported"
    try:
        app(standalone_mode=True)
    except RunError as error:
        _fail(error, 130 if type(error).__name__ == "Interrupted" else 2)
    except TsugikiError as error:
        _fail(error, 2)
    except OSError as broken:
        if broken.filename is None:
            _crash(broken)
        _fail(TsugikiError(f"{str(broken.filename)[:200]}: {broken.strerror}"), 2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as broken:
        _crash(broken)


_SAID: set[str] = set()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A setting under an old name is one line; other warnings stay as Python writes them."""
    if issubclass(category, OldSpelling):
        if str(message) not in _SAID:  # Python forgets what it said whenever a filter changes
            print(f"note: {message}", file=sys.stderr)
        _SAID.add(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(error: Exception, code: int) -> None:
    print(f"tsugiki: {without_secrets(str(error))}", file=sys.stderr)
    sys.exit(code)


def _crash(broken: Exception) -> NoReturn:
    """A bug of ours, with its traceback: Python's own way, but for secrets in it."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(broken))))
    sys.exit(1)


def _study(name: str, changes: list[str] | None) -> StudySpec:
    from tsugiki.study.cells import find_study, parse_study
    from tsugiki.toml import override

    return parse_study(override(find_study(name), changes or []), name)


@app.command(epilog="Example: tsugiki demo --out demo-runs")
def demo(out: Out = DEFAULT_OUT, lang: Lang = None) -> None:
    """LoRA against full fine-tuning on the built-in model and the sample tasks: under five minutes
    on a laptop."""
    language = language_of(lang)
    print(say(language, "terminal.demo"), flush=True)
    from tsugiki.cli.running import run_and_report

    arguments = ["demo", "--out", str(out)]
    end(run_and_report(_study("demo", None), arguments, out, lang=language))


@app.command(
    epilog="Examples: tsugiki study paper --set models='[{path=\"owner/model\"}]'   ·   tsugiki "
    "study my.toml --jobs 4   ·   tsugiki study my.toml --dry-run   ·   tsugiki study --model "
    "builtin --task reviews.csv"
)
def study(
    file: Annotated[
        Optional[str],
        typer.Argument(
            help="A study file (.toml) or the name of a built-in study: demo, paper, recommended."
        ),
    ] = None,
    model: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Instead of a file: a model (a folder, a Hub id, builtin); may be repeated."
        ),
    ] = None,
    task: Annotated[
        Optional[list[str]],
        typer.Option(
            help="With --model: a data file, a task file or a built-in task; may be repeated."
        ),
    ] = None,
    out: Out = DEFAULT_OUT,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of configurations to train in parallel, each in a process of its own.",
        ),
    ] = 1,
    changes: Changes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configurations; run nothing.")
    ] = False,
    as_json: AsJson = False,
    lang: Lang = None,
    track: Track = None,
    worker: Annotated[Optional[str], typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Run what is missing of a study, choose by validation, score on test once, print the
    tables."""
    language = language_of(lang, as_json)
    file = _file_of(file, model, task, language)
    spec = _study(file, changes)
    if worker:
        from tsugiki.cli.running import work

        work(spec, out, worker, track or [])
        return
    if dry_run:
        _print_cells(spec, file, changes, out, as_json, language)
        return
    from tsugiki.cli.running import run_and_report

    arguments = [
        file,
        "--out",
        str(out),
        *(part for change in changes or [] for part in ("--set", change)),
    ]
    end(run_and_report(spec, arguments, out, jobs, as_json, language, track or []))


def _file_of(
    file: str | None, model: list[str] | None, task: list[str] | None, language: Language
) -> str:
    """The study file that is meant; of --model and --task it is written first."""
    if file is not None:
        if model or task:
            raise ConfigError("--model, --task: a study file names its own; use --set, or drop it")
        return file
    from tsugiki.cli.one_line import write_study

    path, lines = write_study(model or [], task or [], language)
    print("\n".join(lines), file=sys.stderr, flush=True)
    return str(path)


def _print_cells(
    spec: StudySpec,
    file: str,
    changes: list[str] | None,
    out: Path,
    as_json: bool,
    language: Language,
) -> None:
    """The configurations of a study, and what `check` says of it where that fetches nothing."""
    from tsugiki.study.cells import expand

    cells = expand(spec)
    if as_json:
        print_json([cell.config.model_dump(mode="json", exclude_none=True) for cell in cells])
        return
    print("\n".join(cell.label for cell in cells), flush=True)
    _check_if_local(file, changes, out, [cell.config for cell in cells], language)
    print(say(language, "terminal.dry_run", count=len(cells), file=file))


def _check_if_local(
    file: str,
    changes: list[str] | None,
    out: Path,
    configs: Sequence[RunConfig],
    language: Language,
) -> None:
    """What `check` says of a study, where that fetches nothing."""
    from tsugiki.cli.first_look import not_here, opening

    if (lacking := not_here(configs)) is not None:
        print(say(language, "terminal.not_here", what=lacking, file=file))
        return
    opening(file, language)
    from tsugiki.cli.check import Planned, check_file

    planned = Planned(out=out, keep=False)
    for line in check_file(Path(file), changes or [], planned=planned, language=language):
        print(line)


@app.command(epilog="Example: tsugiki run run.toml --set train.learning_rate=5e-4")
def run(
    file: Annotated[
        Path,
        typer.Argument(
            help="A run file (.toml) with [model], [task], [train] and, for LoRA, [lora]."
        ),
    ],
    out: Out = DEFAULT_OUT,
    changes: Changes = None,
    track: Track = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    lang: Lang = None,
) -> None:
    """Train one configuration and score it on validation."""
    language = language_of(lang, as_json)
    from tsugiki.cli.running import run_one
    from tsugiki.toml import beside, read_toml, refuse_task_file

    given = read_toml(file)
    refuse_task_file(given, str(file))
    named = beside(given, file.parent)
    record = run_one(named, str(file), changes, out, language, track or [])
    if as_json:
        print_json(record_json(record))
    if record.status != "done":
        raise TsugikiError(record.outcome.reason)
    if not as_json:
        print_scores(record, "validation", language)
        print(say(language, "terminal.run", folder=record.folder))


@app.command(
    "import",
    epilog="Example: tsugiki import my-peft-adapter --model llm-jp/llm-jp-3-1.8b --task "
    "jcommonsenseqa",
)
def import_adapter(
    adapter: Annotated[
        Path,
        typer.Argument(
            help="A PEFT adapter folder (safetensors), from peft, LLaMA-Factory, Unsloth …"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="The base it was made for: a folder, a Hub id, or builtin.")
    ],
    task: Annotated[str, typer.Option(help="A task's name, or a task file.")],
    out: Out = DEFAULT_OUT,
    changes: Changes = None,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Score an adapter that was trained elsewhere: it becomes a run, and a study names it with
    adapter = "FOLDER" under a method."""
    from tsugiki.cli.running import run_one

    language = language_of(lang, as_json)
    given = {"model": {"path": model}, "task": {"name": task}, "adapter": str(adapter)}
    record = run_one(given, "import", changes, out, language)
    if as_json:
        print_json(record_json(record))
        return
    kind = record.outcome.adapter
    assert kind is not None, "an imported run says what it is"
    said = kind.model_dump(include={"targets", "rank", "alpha"})
    trainable = record.outcome.trainable
    print(say(language, "terminal.imported", adapter=adapter, parameters=trainable, **said))
    print_scores(record, "validation", language)
    print(say(language, "terminal.run", folder=record.folder))


@app.command(
    epilog="Examples: tsugiki report demo --out tsugiki-runs   ·   tsugiki report my.toml "
    "--columns score,pm,n   ·   tsugiki report paper --paper"
)
def report(
    file: Annotated[str, typer.Argument(help="A study file or the name of a built-in study.")],
    out: Out = DEFAULT_OUT,
    changes: Changes = None,
    as_json: AsJson = False,
    lang: Lang = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Write the paper's Tables 1 to 6 too, its rows beside yours."),
    ] = False,
    columns: Annotated[
        str,
        typer.Option(
            help="Columns of paper-table.tex, by commas: score, pm, interval, difference, n, "
            "seeds, valid, params, memory, step."
        ),
    ] = "",
) -> None:
    """Write and print the tables of a study from the runs on disk; runs nothing."""
    reads_records_alone()
    from tsugiki.cli.first_look import opening
    from tsugiki.runs.store import Store
    from tsugiki.study.cells import collect

    language = language_of(lang, as_json)
    store = Store(out)
    result = collect(_study(file, changes), store)
    options = "".join(f" --set '{change}'" for change in changes or [])
    again = f"tsugiki study {file} --out {out}{options}"
    if not result.records and not result.missing:
        raise TsugikiError(f"{out}: no finished run of this study there. Run: {again}")
    opening(Path(file).stem, language)  # its tables and figures take seconds
    print_damaged(result.damaged)
    wanted = [name.strip() for name in columns.split(",") if name.strip()]
    whole = print_report(result, out, again, as_json, language, wanted)
    if paper:
        print_paper(result, out, again, language)
    end(whole)
