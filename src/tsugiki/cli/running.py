"""A study for the command line: shown while it runs, in one process or several, and reported at
its end. Torch is loaded when something is on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tsugiki.cli.first_look import look_at_names, look_at_study
from tsugiki.cli.printing import print_report
from tsugiki.cli.progress import Display
from tsugiki.errors import RunError
from tsugiki.runs.events import listening
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.request import run_config
from tsugiki.runs.store import Store
from tsugiki.toml import Given, override
from tsugiki.trackers.known import listeners_of
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.config.study import StudySpec
    from tsugiki.study.executors import Stage
    from tsugiki.words import Language


def run_one(
    given: Given,
    where: str,
    changes: list[str] | None,
    out: Path,
    lang: Language = "en",
    track: Sequence[str] = (),
) -> RunRecord:
    """One run, from what a file or a command says of it; shown while it goes."""
    config = run_config(override(given, changes or []), where)
    look_at_names([config])
    trackers = listeners_of(track)
    with (
        Display(lang, config.task.label) as display,
        listening(display.events, trackers, display.events.note) as events,
    ):
        from tsugiki.runs.rounds import run_group

        return run_group([config], Store(out), events)[0]


def run_and_report(
    spec: StudySpec,
    arguments: list[str],
    out: Path,
    jobs: int = 1,
    as_json: bool = False,
    lang: Language = "en",
    track: Sequence[str] = (),
) -> bool:
    """Runs what is missing and prints the report; `arguments` are those of `tsugiki study`. False
    when something is missing or did not learn."""
    store, trackers = Store(out), listeners_of(track)
    look_at_study(spec, store)
    whole = [*arguments, *(part for name in track for part in ("--track", name))]
    with (
        Display(lang, spec.name) as display,
        listening(display.events, trackers, display.events.note) as events,
    ):
        from tsugiki.study.executors import WorkerProcesses
        from tsugiki.study.sweep import run_study

        many = None
        if jobs > 1:
            # Their notes are read on the same terminal.
            theirs = [*whole, "--lang", lang]
            many = partial(WorkerProcesses, arguments=theirs, jobs=jobs, lines=display.worker)
        try:
            result = run_study(
                spec,
                store,
                events,
                on_cell=display.on_cell,
                on_left=display.on_left,
                workers=many if jobs > 1 else None,
            )
        except RunError as stopped:
            if type(stopped).__name__ == "Interrupted":
                command = f"tsugiki report {shlex.join(arguments)}"
                said = Message("error.stopped_study", stopped=stopped.message, command=command)
                stopped.args = (said,)
            raise
    return print_report(result, out, f"tsugiki study {shlex.join(whole)}", as_json, lang)


def work(
    spec: StudySpec, out: Path, stage: str, lang: Language = "en", track: Sequence[str] = ()
) -> None:
    """What a worker of `--jobs` does until nothing of its stage is left, or until the process that
    started it ends."""
    from tsugiki.study.executors import stop_with_parent
    from tsugiki.study.messages import Sender, take_standard_output
    from tsugiki.study.worker import run_stage

    stop_with_parent()
    sender, trackers = Sender(take_standard_output(), lang), listeners_of(track)
    with listening(sender.events, trackers, sender.note) as events:
        run_stage(spec, Store(out), cast("Stage", stage), events, sender.on_cell)
