"""The command line: parses and prints, nothing else. Heavy imports wait until a command needs
them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from tsugiki.cli.printing import (
    print_comparison,
    print_damaged,
    print_json,
    print_record,
    print_report,
    print_rules,
    print_scores,
    print_ways,
)
from tsugiki.errors import ConfigError, RunError, TsugikiError

if TYPE_CHECKING:
    from tsugiki.config.study import StudySpec
    from tsugiki.report.words import Language
    from tsugiki.runs.use import Stored

app = typer.Typer(
    help="tsugiki (接ぎ木): LoRA and full fine-tuning of Japanese language models, "
    "compared fairly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tasks_app = typer.Typer(help="List tasks; look at the rows a model will see.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")

Out = Annotated[Path, typer.Option("--out", "-o", help="Root folder of all runs and reports.")]
Changes = Annotated[
    Optional[list[str]],
    typer.Option("--set", help="Change a setting: --set train.epochs=2 (may be repeated)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Lang = Annotated[
    str,
    typer.Option(
        "--lang", help="Language of what is printed: en or ja. Both pages are written in any case."
    ),
]
DEFAULT_OUT = Path("tsugiki-runs")


def main() -> None:
    """Entry point: the user's errors become one line and exit code 2, Ctrl-C exit code 130."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                encoding="utf-8"
            )  # a Japanese Windows would pipe in CP932, which lacks some of our signs
    try:
        app(standalone_mode=True)
    except RunError as error:
        _fail(error, 130 if type(error).__name__ == "Interrupted" else 2)
    except TsugikiError as error:
        _fail(error, 2)
    except OSError as broken:
        if broken.filename is None:
            raise
        _fail(TsugikiError(f"{str(broken.filename)[:200]}: {broken.strerror}"), 2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _fail(error: Exception, code: int) -> None:
    print(f"tsugiki: {error}", file=sys.stderr)
    sys.exit(code)


def _study(name: str, changes: list[str] | None) -> StudySpec:
    from tsugiki.study.cells import find_study, parse_study
    from tsugiki.toml import override

    return parse_study(override(find_study(name), changes or []), name)


@app.command(epilog="Example: tsugiki demo --out demo-runs")
def demo(out: Out = DEFAULT_OUT) -> None:
    """LoRA against full fine-tuning on the built-in model and the sample tasks: under five minutes
    on a laptop."""
    print(
        "These are the sample tasks and the small model that ship with tsugiki: they show how it "
        "works, not how good a model is."
    )
    from tsugiki.cli.running import run_and_report

    _end(run_and_report(_study("demo", None), ["demo", "--out", str(out)], out))


@app.command(
    epilog="Examples: tsugiki study paper --set models='[{path=\"owner/model\"}]'   ·   tsugiki "
    "study my.toml --jobs 4   ·   tsugiki study my.toml --dry-run"
)
def study(
    file: Annotated[
        str,
        typer.Argument(
            help="A study file (.toml) or the name of a built-in study: demo, paper, recommended."
        ),
    ],
    out: Out = DEFAULT_OUT,
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells run side by side in so many processes.")
    ] = 1,
    changes: Changes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells; run nothing.")
    ] = False,
    as_json: AsJson = False,
    lang: Lang = "en",
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run what is missing of a study, choose by validation, score on test once, print the
    tables."""
    from tsugiki.cli.running import run_and_report, work

    language = _language(lang)
    spec = _study(file, changes)
    if worker:
        work(spec, out)
        return
    if dry_run:
        from tsugiki.study.cells import expand

        cells = expand(spec)
        if as_json:
            print_json([cell.config.model_dump(mode="json", exclude_none=True) for cell in cells])
            return
        print("\n".join(cell.label for cell in cells))
        print(
            f"{len(cells)} cells. Next: tsugiki check {file}, then the same command without "
            "--dry-run"
        )
        return
    arguments = [
        file,
        "--out",
        str(out),
        *(part for change in changes or [] for part in ("--set", change)),
    ]
    _end(run_and_report(spec, arguments, out, jobs, as_json, language))


def _end(complete: bool) -> None:
    """Exit code 3: something is missing, or a method did not learn (the last line says what)."""
    if not complete:
        raise typer.Exit(3)


def _language(lang: str) -> Language:
    if lang not in ("en", "ja"):
        raise ConfigError(f'--lang "{lang}": must be en or ja')
    return cast("Language", lang)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Train one configuration and score it on validation."""
    from tsugiki.cli.progress import Display
    from tsugiki.config.run import RunConfig
    from tsugiki.runs.group import run_group
    from tsugiki.runs.store import Store
    from tsugiki.toml import beside, override, parse, read_toml, refuse_task_file

    given = read_toml(file)
    refuse_task_file(given, str(file))
    config = parse(RunConfig, override(beside(given, file.parent), changes or []), str(file))
    with Display() as display:
        record = run_group([config], Store(out), display.listener)[0]
    if as_json:
        print_json({"folder": str(record.folder), **record.happened})
    if record.status != "done":
        raise TsugikiError(record.happened["reason"])
    if not as_json:
        print_scores(record, "validation")
        print(f"Run: {record.folder}\nNext: tsugiki score {record.folder} --part test")


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
) -> None:
    """Score an adapter that was trained elsewhere: it becomes a run, and a study names it with
    adapter = "FOLDER" under a method."""
    from tsugiki.cli.progress import Display
    from tsugiki.config.run import RunConfig
    from tsugiki.runs.group import run_group
    from tsugiki.runs.store import Store
    from tsugiki.toml import override, parse

    given = {"model": {"path": model}, "task": {"name": task}, "adapter": str(adapter)}
    config = parse(RunConfig, override(given, changes or []), "import")
    with Display() as display:
        record = run_group([config], Store(out), display.listener)[0]
    if as_json:
        print_json({"folder": str(record.folder), **record.happened})
        return
    kind = record.happened["adapter"]
    print(
        f"{adapter}: LoRA {kind['targets']}, rank {kind['rank']}, α {kind['alpha']:g}; "
        f"{record.happened['trainable']:,} parameters"
    )
    print_scores(record, "validation")
    print(f"Run: {record.folder}\nNext: tsugiki score {record.folder} --part test")


def _run_folder(given: Path) -> Path:
    """The folder of a run: as given, or a name that `ls` prints."""
    named = DEFAULT_OUT / "runs" / given.name
    return named if not given.exists() and given == Path(given.name) and named.exists() else given


@app.command(
    epilog="Examples: tsugiki score RUN --part test   ·   tsugiki score RUN --rules all   ·   "
    "tsugiki score RUN --rules xlsum,flexeval --part validation"
)
def score(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rules: Annotated[
        Optional[str],
        typer.Option(
            help="Score the kept answers by other tools' rules: all, or names joined by commas. No "
            "model is loaded."
        ),
    ] = None,
    ways: Annotated[
        bool,
        typer.Option(
            "--ways",
            help="Also by log-likelihood and by generation among the candidates only: form against "
            "knowledge.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Score a finished run on one part of its task; a part that was scored is only printed."""
    from tsugiki.cli.progress import Display
    from tsugiki.data.tasks import SPLITS
    from tsugiki.errors import did_you_mean
    from tsugiki.runs.finished import score_run
    from tsugiki.runs.store import read_record

    if part not in SPLITS:
        raise ConfigError(f'--part "{part}": no such part.{did_you_mean(part, SPLITS)}')
    if rules and ways:
        raise ConfigError(
            "--rules, --ways: one of them at a time: the first scores kept answers, the second "
            "asks the model"
        )
    if rules:
        from tsugiki.runs.rescore import rescore

        print_rules(rescore(read_record(_run_folder(folder)), part, rules), as_json)
        return
    with Display() as display:
        if ways:
            from tsugiki.runs.answer_modes import three_ways

            found = three_ways(read_record(_run_folder(folder)), part, display.listener)
        record = score_run(read_record(_run_folder(folder)), part, display.listener)
    if ways:
        print_ways(found, as_json)
        return
    if as_json:
        print_json(record.evaluation(part))
    else:
        print_scores(record, part)
        print(f"Next: tsugiki compare {folder} ANOTHER-RUN --part {part}")


@app.command("ls", epilog="Example: tsugiki ls --out tsugiki-runs")
def list_runs(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """The runs under a root folder: status, scores, training time."""
    from tsugiki.cli.progress import show_tables
    from tsugiki.report.compare import list_row
    from tsugiki.report.tables import Table
    from tsugiki.runs.store import Store

    rows = [list_row(record) for record in Store(out).records()]
    print_damaged(Store(out))
    if as_json:
        print_json(rows)
        return
    if not rows:
        raise TsugikiError(
            f"{out}: no runs there. Run a study first (tsugiki demo), or name the root folder of "
            "your runs with --out"
        )
    cells = [
        tuple(
            "-" if value is None else f"{value:,.0f}" if isinstance(value, float) else value
            for value in row.values()
        )
        for row in rows
    ]
    show_tables(
        [
            Table(
                name="runs",
                title=str(out / "runs"),
                header=("Run", "Status", "Training (s)", "Validation", "Test"),
                rows=tuple(cells),
            )
        ]
    )
    print(f"Next: tsugiki show {out / 'runs' / rows[0]['run']}")


@app.command(epilog="Example: tsugiki show tsugiki-runs/runs/jnli-…")
def show(
    folder: Annotated[Path, typer.Argument(help="A run folder.")], as_json: AsJson = False
) -> None:
    """What a run was asked, with what, and what happened."""
    from tsugiki.runs.store import read_record

    record = read_record(_run_folder(folder))
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
    from tsugiki.runs.store import read_record

    found = compare_runs(read_record(_run_folder(first)), read_record(_run_folder(second)), part)
    print_comparison(found, part, rows, as_json)
    if not as_json:
        print(f"Next: tsugiki show {first}")


@app.command(
    epilog="Examples: tsugiki generate RUN --text 文1:…[SEP]文2:…[SEP]   ·   echo 文 | tsugiki "
    "generate RUN"
)
def generate(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    text: Annotated[
        Optional[str],
        typer.Option(help="The prompt; without it each line of standard input is one."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Let a trained checkpoint answer your own text, greedily.

    The text is the whole prompt, in the form the run was trained on ([SEP] included): see `tsugiki
    tasks show TASK`.
    """
    from tsugiki.runs.store import read_record
    from tsugiki.runs.use import answer_texts

    lines = (
        [text] if text is not None else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    )
    if not any(line.strip() for line in lines):
        raise ConfigError("generate: no text given. Use --text, or write lines to standard input")
    for answer in answer_texts(read_record(_run_folder(folder)), lines, max_new_tokens):
        print(answer)


@app.command(epilog="Example: tsugiki report demo --out tsugiki-runs")
def report(
    file: Annotated[str, typer.Argument(help="A study file or the name of a built-in study.")],
    out: Out = DEFAULT_OUT,
    changes: Changes = None,
    as_json: AsJson = False,
    lang: Lang = "en",
) -> None:
    """Write and print the tables of a study from the runs on disk; runs nothing."""
    from tsugiki.runs.store import Store
    from tsugiki.study.cells import collect

    language = _language(lang)
    store = Store(out)
    result = collect(_study(file, changes), store)
    options = "".join(f" --set '{change}'" for change in changes or [])
    if not result.records and not result.missing:
        raise TsugikiError(
            f"{out}: no finished run of this study there. Run: tsugiki study {file} --out "
            f"{out}{options}"
        )
    print_damaged(store)
    _end(print_report(result, out, f"tsugiki study {file} --out {out}{options}", as_json, language))


@app.command(
    epilog="Examples: tsugiki export RUN --to my-adapter   ·   tsugiki export RUN --to my-model "
    "--merge --dtype bf16"
)
def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option("--to", help="New folder.")],
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Write the whole model, the adapter added to its weights, if it still answers the "
            "same.",
        ),
    ] = False,
    dtype: Annotated[
        Optional[str],
        typer.Option(
            help="With --merge: fp32, bf16 or fp16 (default: what the base was stored in)."
        ),
    ] = None,
    tolerance: Annotated[
        Optional[float],
        typer.Option(
            min=0, help="With --merge: points of 100 that the score may move (default 0.5)."
        ),
    ] = None,
) -> None:
    """Write a LoRA run as a PEFT adapter folder, or a run of any kind as an ordinary model folder
    (--merge)."""
    from tsugiki.runs.store import read_record
    from tsugiki.runs.use import STORED, export_merged, export_run

    record = read_record(_run_folder(folder))
    if not merge:
        if dtype or tolerance is not None:
            raise ConfigError(
                "--dtype, --tolerance: only --merge reads them: an adapter is written as it is"
            )
        export_run(record, to)
        print(
            f"{to}: adapter_config.json, adapter_model.safetensors\nNext: "
            f"peft.PeftModel.from_pretrained(base, '{to}')"
        )
        return
    if dtype is not None and dtype not in STORED:
        raise ConfigError(f'--dtype "{dtype}": must be one of {", ".join(STORED)}')
    stored = cast("Stored", dtype or record.with_what["numerics"]["base"])
    seen = export_merged(record, to, stored, tolerance=0.5 if tolerance is None else tolerance)
    print(
        f"{to}: a model folder; weights {seen.stored_before} → {seen.stored_after}, "
        f"{seen.lost:.2%} of the adapter lost to rounding"
    )
    print(
        f"Gate: {seen.rows} rows of validation, {seen.score} {seen.before:.4f} → {seen.after:.4f}, "
        f"{seen.changed} answers changed"
    )
    print(f"Next: transformers.AutoModelForCausalLM.from_pretrained('{to}')")


@app.command(epilog="Examples: tsugiki check my_task.toml   ·   tsugiki check my_study.toml")
def check(
    file: Annotated[
        Path,
        typer.Argument(help="A task, run or study file, or the name of a built-in task or study."),
    ],
    changes: Changes = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Load the models too, and look at them with a few tokens: all that a run refuses "
            "is refused.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a file and everything it names, without training: keys, data, splits, labels, every
    prompt, the models' tensors by name."""
    from tsugiki.cli.check import check_file, next_command

    if as_json:
        print_json({"file": str(file), "lines": list(check_file(file, changes or [], load=load))})
        return
    for line in check_file(file, changes or [], load=load):
        print(line)
    print(f"Next: {next_command(file)}")


@tasks_app.command("list")
def tasks_list(as_json: AsJson = False) -> None:
    """The built-in tasks."""
    from tsugiki.data.tasks import builtin_tasks
    from tsugiki.toml import read_task

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
        print(
            f"{name:16} {spec.kind:15} {spec.metric:12} formats: {', '.join(spec.formats)}; "
            f"splits: {', '.join(spec.splits)}; {spec.licence}"
        )
    print("Next: tsugiki tasks show NAME")


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
) -> None:
    """Print rows of a task as the model will see them."""
    from tsugiki.cli.check import show_task
    from tsugiki.config.run import TaskChoice

    choice = TaskChoice(name=name, version=version, split=split, format=format, data_dir=data_dir)
    for line in show_task(choice, part, rows, model if tokens else None):
        print(line)
    print(
        f"Next: tsugiki check {name}"
        if Path(name).suffix == ".toml"
        else "Next: name it under [[tasks]] in a study file, or: tsugiki demo"
    )
