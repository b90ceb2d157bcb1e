"""Commands that give a run to others: peft, transformers, evaluation tools, a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from tsugiki.cli.app import app, run_folder
from tsugiki.cli.language import Lang, language_of, page_language
from tsugiki.errors import ConfigError, without_secrets
from tsugiki.words import say

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.use import Stored
    from tsugiki.words import Language

Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Write the whole model, the adapter added to its weights, if it still answers the "
        "same.",
    ),
]


Dtype = Annotated[
    Optional[str],
    typer.Option(
        help="With --merge: fp32, bf16 or fp16 (default: what the base was stored in; over a base "
        "in 4 bits bf16)."
    ),
]
Tolerance = Annotated[
    Optional[float],
    typer.Option(min=0, help="With --merge: points of 100 that the score may move (default 0.5)."),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="With --merge: write it though it does not answer the same; merged.json says how.",
    ),
]
LmEval = Annotated[
    bool,
    typer.Option("--lm-eval", help="Write the task for lm-evaluation-harness, and its command."),
]
Flexeval = Annotated[
    bool, typer.Option("--flexeval", help="Write the task for flexeval, and its command.")
]
Push = Annotated[
    Optional[str],
    typer.Option(help="owner/name: a new private repository on the Hub for the adapter."),
]


def _stored(dtype: str | None, record: RunRecord) -> Stored:
    """What merged weights are written in."""
    from tsugiki.runs.use import STORED

    if dtype == "nf4":
        raise ConfigError(
            '--dtype "nf4": 4 bits would round the adapter away. Merge into bf16 (the default over '
            "a base in 4 bits), or export the adapter and load the base in 4 bits beneath it"
        )
    if dtype is not None and dtype not in STORED:
        raise ConfigError(f'--dtype "{dtype}": must be one of {", ".join(STORED)}')
    kept = record.provenance.numerics.base
    return cast("Stored", dtype or ("bf16" if kept == "nf4" else kept))


@app.command(
    epilog="Examples: tsugiki export RUN --to my-adapter   ·   tsugiki export RUN --to my-model "
    "--merge --dtype bf16"
)
def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option("--to", help="New folder.")],
    merge: Merge = False,
    dtype: Dtype = None,
    tolerance: Tolerance = None,
    force: Force = False,
    lm_eval: LmEval = False,
    flexeval: Flexeval = False,
    push: Push = None,
    lang: Lang = None,
) -> None:
    """Write a LoRA run as a PEFT adapter folder (and to the Hub: --push), or a run of any kind as
    an ordinary model folder (--merge), or what other tools score its test part with (--lm-eval,
    --flexeval)."""
    from tsugiki.runs.reading import read_record

    language = language_of(lang)
    record = read_record(run_folder(folder))
    kinds = {"--merge": merge, "--lm-eval": lm_eval, "--flexeval": flexeval, "--push": bool(push)}
    if sum(kinds.values()) > 1:
        raise ConfigError(f"{', '.join(kinds)}: one of them at a time")
    if not merge and (dtype or tolerance is not None or force):
        raise ConfigError(
            "--dtype, --tolerance, --force: only --merge reads them; adapters are written as they "
            "are"
        )
    _opening(record, language)
    from tsugiki.runs.use import export_for_tool, export_run

    if merge:
        _merge(record, to, dtype, tolerance, force=force, language=language)
    elif lm_eval or flexeval:
        export_for_tool(record, to, "lm-eval" if lm_eval else "flexeval")
        print(say(language, "terminal.for_tool", folder=to))
    elif push:
        from tsugiki.runs.push import push_adapter

        address = without_secrets(push_adapter(record, to, push))
        print(say(language, "terminal.pushed", folder=to, address=address, name=push))
    else:
        export_run(record, to)
        print(say(language, "terminal.exported", folder=to))


def _opening(record: RunRecord, language: Language) -> None:
    from tsugiki.cli.first_look import opening

    opening(record.folder.name, language)


def _merge(
    record: RunRecord,
    to: Path,
    dtype: str | None,
    tolerance: float | None,
    *,
    force: bool,
    language: Language,
) -> None:
    from tsugiki.runs.use import export_merged

    stored = _stored(dtype, record)
    allowed = 0.5 if tolerance is None else tolerance
    seen = export_merged(record, to, stored, tolerance=allowed, force=force)
    print(say(language, "terminal.merged", folder=to, **asdict(seen)))
    if seen.forced:
        print(say(language, "terminal.merged_by_force"))
    print(say(language, "terminal.merged_next", folder=to))


@app.command(
    "try", epilog="Example: tsugiki try LORA-RUN FT-RUN   (then open the address it prints)"
)
def try_runs(
    folders: Annotated[list[Path], typer.Argument(help="Run folders of one task and one model.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of this machine.")] = 8765,
    lang: Lang = None,
) -> None:
    """Open a page on this machine: the base and these runs answer the same row, or go on with the
    same text, side by side."""
    from tsugiki.runs.reading import read_record

    language, spoken = page_language(lang), language_of(lang)
    records = [read_record(run_folder(folder)) for folder in folders]
    _opening(records[0], spoken)
    from tsugiki.cli.try_page import serve
    from tsugiki.runs.side_by_side import SideBySide

    serve(SideBySide(records), language, port, spoken)
