"""The command line itself, and the options that commands share. Heavy imports wait until a command
needs them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="tsugiki (接ぎ木): LoRA and full fine-tuning of Japanese language models, "
    "compared fairly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tsugiki import __version__

        print(f"tsugiki {__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


tasks_app = typer.Typer(help="List tasks; look at the rows a model will see.", no_args_is_help=True)
Out = Annotated[Path, typer.Option("--out", "-o", help="Root folder of all runs and reports.")]
Changes = Annotated[
    Optional[list[str]],
    typer.Option("--set", help="Change a setting: --set train.epochs=2 (may be repeated)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Track = Annotated[
    Optional[list[str]],
    typer.Option(
        "--track",
        help="Log every run to tensorboard, wandb or mlflow too (may be repeated).",
    ),
]
DEFAULT_OUT = Path("tsugiki-runs")


def end(complete: bool) -> None:
    """Exit code 3: something is missing, or a method did not learn (the last line says what)."""
    if not complete:
        raise typer.Exit(3)


def run_folder(given: Path) -> Path:
    """The folder of a run: as given, or a name that `ls` prints."""
    named = DEFAULT_OUT / "runs" / given.name
    return named if not given.exists() and given == Path(given.name) and named.exists() else given


def reads_records_alone() -> None:
    """For commands that load no torch: numpy's matmuls are small there, and the threads that its
    library would start for them cost a tenth of a second."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
