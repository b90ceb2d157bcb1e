"""tsugiki (接ぎ木): LoRA and full fine-tuning of Japanese language models, compared fairly.

import tsugiki
record = tsugiki.run({"model": {"path": "builtin"}, "task": {"name": "sample_nli"}, "train":
{"learning_rate": 1e-3}}) print(record.main_score("validation"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsugiki.config.run import RunConfig
    from tsugiki.runs.reading import RunRecord
    from tsugiki.study.cells import StudyResult
    from tsugiki.toml import Given

__version__ = "0.2.0"
__all__ = ["run", "run_study"]


def run(config: RunConfig | Given, out: str | Path = "tsugiki-runs") -> RunRecord:
    """Trains one configuration and scores it on validation; a finished one is only read.

    Args:
        config: a `RunConfig`, or a mapping of its fields.
        out: root folder of all runs.

    Raises:
        TsugikiError: something in the configuration, the data or the model is wrong.
    """
    from tsugiki.config.run import RunConfig
    from tsugiki.runs.rounds import run_group
    from tsugiki.runs.store import Store
    from tsugiki.toml import parse

    parsed = config if isinstance(config, RunConfig) else parse(RunConfig, config, "tsugiki.run")
    return run_group([parsed], Store(Path(out)))[0]


def run_study(study: str | Path, out: str | Path = "tsugiki-runs") -> StudyResult:
    """Runs what is missing of a study (a built-in name or a file) and writes its report under
    `out`/studies."""
    from tsugiki.report.material import gather
    from tsugiki.report.write import write_report
    from tsugiki.runs.store import Store
    from tsugiki.study.cells import find_study, parse_study
    from tsugiki.study.sweep import run_study as run_all

    result = run_all(parse_study(find_study(str(study)), str(study)), Store(Path(out)))
    write_report(gather(result), Path(out))
    return result
