"""tsugiki (接ぎ木): LoRA and full fine-tuning of Japanese language models, compared fairly.

import tsugiki
record = tsugiki.run({"model": {"path": "builtin"}, "task": {"name": "sample_nli"}, "train":
{"learning_rate": 1e-3}}) print(record.main_score("validation"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tsugiki.config.run import RunConfig
    from tsugiki.config.study import StudySpec
    from tsugiki.report.results import RunResult, StudyReport
    from tsugiki.runs.events import Listener
    from tsugiki.toml import Given

__version__ = "0.2.0"
__all__ = [
    "Listener",
    "RunResult",
    "StudyReport",
    "read_run",
    "read_study",
    "run",
    "run_study",
]
# Imported at their first use: a program that imports tsugiki waits for nothing.
_LATER = {
    "Listener": "tsugiki.runs.events",
    "RunResult": "tsugiki.report.results",
    "StudyReport": "tsugiki.report.results",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'tsugiki' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)


def run(
    config: RunConfig | Given,
    out: str | Path = "tsugiki-runs",
    *,
    progress: bool = True,
    listeners: Sequence[Listener | str] = (),
    language: Literal["ja", "en"] = "en",
) -> RunResult:
    """Trains one configuration and scores it on validation; a finished one is only read, a stopped
    one goes on.

    Args:
        config: a `RunConfig`, or a mapping of its fields (`model`, `task`, `lora`, `train`,
            `score`; docs/study-files.md).
        out: root folder of all runs.
        progress: one line while it goes, on a terminal or in a notebook; nothing into a pipe.
        listeners: who else hears of it: a `Listener`, or a tracker's name (`"tensorboard"`,
            `"wandb"`, `"mlflow"`).
        language: of the line, and of what a notebook shows.

    Returns:
        The run; where training diverged or taught nothing its `status` is `failed`, with the reason
        in `outcome.reason`, and nothing is raised.

    Raises:
        TsugikiError: something in the configuration, the data or the model is wrong, or a tracker's
            package is not installed.
    """
    from tsugiki.cli.notebook import display_of
    from tsugiki.config.run import RunConfig
    from tsugiki.report.results import RunResult
    from tsugiki.runs.request import run_config
    from tsugiki.runs.rounds import run_group
    from tsugiki.runs.store import Store

    parsed = config if isinstance(config, RunConfig) else run_config(config, "tsugiki.run")
    with display_of(parsed.task.label, progress, language, listeners) as display:
        record = run_group([parsed], Store(Path(out)), display.events)[0]
    return RunResult.of(record, language)


def run_study(
    study: str | Path | Given,
    out: str | Path = "tsugiki-runs",
    *,
    progress: bool = True,
    listeners: Sequence[Listener | str] = (),
    language: Literal["ja", "en"] = "en",
) -> StudyReport:
    """Runs what is missing of a study, chooses by validation, scores the chosen on test once, and
    writes the report under `out`/studies.

    Args:
        study: the name of a built-in study, a study file, or a mapping of its fields
            (docs/study-files.md).
        out: root folder of all runs and reports.
        progress: one line while it goes, on a terminal or in a notebook; nothing into a pipe.
        listeners: who else hears of every run: a `Listener`, or a tracker's name.
        language: of the line, of what a notebook shows, and of figures.

    Returns:
        The study; what could not be had stands in its `missing`, with the reason.

    Raises:
        TsugikiError: the study is wrong, or nothing of it can be run (the first reason).
    """
    from tsugiki.cli.notebook import display_of
    from tsugiki.report.results import StudyReport
    from tsugiki.report.write import write_report
    from tsugiki.runs.store import Store
    from tsugiki.study.sweep import run_study as run_all

    root, spec = Path(out), _spec(study)
    with display_of(spec.name, progress, language, listeners) as display:
        result = run_all(
            spec,
            Store(root),
            display.events,
            on_cell=display.on_cell,
            on_left=display.on_left,
        )
    report = StudyReport.of(result, root, language)
    write_report(report.material, root, language)
    return report


def read_run(folder: str | Path, language: Literal["ja", "en"] = "en") -> RunResult:
    """A run from its folder, as it stands on disk; trains nothing.

    Raises:
        TsugikiError: there is no run in that folder, or a file of it is damaged.
    """
    from tsugiki.report.results import RunResult
    from tsugiki.runs.reading import read_record

    return RunResult.of(read_record(Path(folder)), language)


def read_study(
    study: str | Path | Given,
    out: str | Path = "tsugiki-runs",
    language: Literal["ja", "en"] = "en",
) -> StudyReport:
    """A study from what is on disk of it; trains nothing and writes nothing.

    Raises:
        TsugikiError: the study is wrong.
    """
    from tsugiki.report.results import StudyReport
    from tsugiki.runs.store import Store
    from tsugiki.study.cells import collect

    root = Path(out)
    return StudyReport.of(collect(_spec(study), Store(root)), root, language)


def _spec(study: str | Path | Given) -> StudySpec:
    from tsugiki.study.cells import find_study, parse_study

    if isinstance(study, (str, Path)):
        return parse_study(find_study(str(study)), str(study))
    return parse_study(study, "study")
