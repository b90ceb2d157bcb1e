"""Commands on files: check, and tasks list and show."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Optional

import typer

from tsugiki.cli.app import DEFAULT_OUT, AsJson, Changes, Out, app, tasks_app
from tsugiki.cli.language import Lang, language_of
from tsugiki.cli.printing import print_json
from tsugiki.data.rows import is_data
from tsugiki.words import Language, Message, in_language, say

app.add_typer(tasks_app, name="tasks")


@app.command(
    epilog="Examples: tsugiki check   ·   tsugiki check rows.csv   ·   tsugiki check my_task.toml "
    "  ·   tsugiki check my_study.toml --margin 1 --power 0.9   ·   tsugiki check recommended "
    "--memory 24"
)
def check(
    file: Annotated[
        Optional[Path],
        typer.Argument(
            help="A task, run or study file, the name of a built-in task or study, or a data file; "
            "without it, this machine."
        ),
    ] = None,
    changes: Changes = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Load the models too, and look at them with a few tokens: all that a run refuses "
            "is refused.",
        ),
    ] = False,
    margin: Annotated[
        Optional[float],
        typer.Option(
            min=0.01, max=99, help="Of a study: points within which methods count as equal."
        ),
    ] = None,
    power: Annotated[
        Optional[float],
        typer.Option(
            min=0.5,
            max=0.999,
            help="Of a study: how often it is to find what is there; says how many rows and seeds "
            "that takes.",
        ),
    ] = None,
    memory: Annotated[
        Optional[float],
        typer.Option(
            min=0.1, help="Say what fits on a CUDA device of so many GiB, not on this machine's."
        ),
    ] = None,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
    lang: Lang = None,
) -> None:
    """Check a file and all it names, without training: keys, data, every prompt, models, memory; of
    a study also hours, disk, and what it can find. Without a file: this machine."""
    from tsugiki.cli.first_look import look_at_file, opening

    language = language_of(lang, as_json)
    if file is None or is_data(file):
        _check_other(file, out, language, as_json)
        return
    look_at_file(file, changes or [])
    opening(str(file), language)
    from tsugiki.cli.check import Planned, check_file, next_command

    planned = Planned(out=out, margin=margin, power=power)
    said = check_file(
        file, changes or [], load=load, planned=planned, memory_gib=memory, language=language
    )
    if not _print_lines(said, as_json, language, file):
        print(say(language, "terminal.next", command=next_command(file)))


def _check_other(file: Path | None, out: Path, language: Language, as_json: bool) -> None:
    """This machine, or a data file."""
    if file is None:
        from tsugiki.cli.first_look import opening

        opening("check", language)
        from tsugiki.cli.machine import machine_lines

        _print_lines(machine_lines(out), as_json, language)
        return
    from tsugiki.cli.one_line import enough_of, said_of
    from tsugiki.data.new_task import columns_of

    columns = columns_of(file)
    if not _print_lines([*said_of(columns), *enough_of(columns)], as_json, language):
        command = f"tsugiki study --model builtin --task {shlex.quote(str(file))}"
        print(say(language, "terminal.next", command=command))


def _print_lines(
    lines: Iterable[str], as_json: bool, language: Language, file: Path | None = None
) -> bool:
    """Whether they were printed as JSON."""
    if as_json:
        named = {} if file is None else {"file": str(file)}
        print_json({**named, "lines": [in_language(language, line) for line in lines]})
        return True
    for line in lines:
        print(in_language(language, line), flush=True)
    return False


@tasks_app.command(
    "new",
    epilog="Examples: tsugiki tasks new reviews.csv   ·   tsugiki tasks new talk.jsonl --fields "
    "question,context --target answer --to talk.toml",
)
def tasks_new(
    data: Annotated[
        Path,
        typer.Argument(
            help="Rows: .csv, .tsv, .jsonl, .json, .parquet, .arrow (text also with .gz)."
        ),
    ],
    fields: Annotated[
        str, typer.Option(help="Columns that the answer depends on, by commas (default: found).")
    ] = "",
    target: Annotated[
        Optional[str], typer.Option(help="The column of the answer (default: found).")
    ] = None,
    to: Annotated[
        Optional[Path],
        typer.Option("--to", help="The new file (default: NAME.toml in the current folder)."),
    ] = None,
    lang: Lang = None,
) -> None:
    """Write the task file of a data file: which column is the answer, its labels, the prompt, how
    rows are split. Nothing is overwritten."""
    from tsugiki.cli.one_line import new_task_file

    language = language_of(lang)
    names = [name.strip() for name in fields.split(",") if name.strip()]
    path, lines = new_task_file(data, to, names, target)
    for line in [*lines, Message("terminal.written", path=path)]:
        print(in_language(language, line))
    print(say(language, "terminal.next", command=f"tsugiki check {path}"))


@tasks_app.command("list")
def tasks_list(as_json: AsJson = False, lang: Lang = None) -> None:
    """The built-in tasks."""
    from tsugiki.data.task_file import read_task
    from tsugiki.data.tasks import builtin_tasks

    language = language_of(lang, as_json)
    specs = {name: read_task(path) for name, path in builtin_tasks().items()}
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    **spec.model_dump(
                        mode="json", include={"title", "kind", "metric", "licence", "citation"}
                    ),
                }
                for name, spec in specs.items()
            ]
        )
        return
    for name, spec in specs.items():
        values = {"kind": spec.kind, "metric": spec.metric, "licence": spec.licence}
        lists = {"formats": ", ".join(spec.formats), "splits": ", ".join(spec.splits)}
        print(say(language, "terminal.task_row", name=name, **values, **lists))
    print(say(language, "terminal.next", command="tsugiki tasks show NAME"))


@tasks_app.command("show", epilog="Example: tsugiki tasks show jnli --data-dir data --tokens")
def tasks_show(
    name: Annotated[str, typer.Argument(help="Task name or task file.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Print ids and loss mask too.")] = False,
    model: Annotated[str, typer.Option(help="Whose tokenizer to use with --tokens.")] = "builtin",
    rows: Annotated[int, typer.Option(min=1)] = 3,
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    version: Annotated[Optional[str], typer.Option()] = None,
    split: Annotated[Optional[str], typer.Option()] = None,
    format: Annotated[Optional[str], typer.Option()] = None,
    data_dir: Annotated[
        Optional[str], typer.Option(help="Folder with local copies of the data files.")
    ] = None,
    lang: Lang = None,
) -> None:
    """Print rows of a task as the model will see them."""
    from tsugiki.cli.task_rows import show_task
    from tsugiki.config.run import TaskChoice

    language = language_of(lang)
    choice = TaskChoice(name=name, version=version, split=split, format=format, data_dir=data_dir)
    if tokens:
        from tsugiki.cli.first_look import look_at_task, opening

        look_at_task(choice)
        opening(name, language)
    for line in show_task(choice, part, rows, model if tokens else None):
        print(in_language(language, line))
    own = Path(name).suffix == ".toml"
    command = f"tsugiki check {name}" if own else say(language, "terminal.use_task")
    print(say(language, "terminal.next", command=command))
