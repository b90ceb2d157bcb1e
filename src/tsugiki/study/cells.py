"""A study file becomes cells: models × tasks × methods × grid. No torch here: reports are made
from this and the records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.config.run import LoraConfig, ModelChoice, RunConfig, TaskChoice, TrainConfig
from tsugiki.config.study import MethodSpec, Range, StudySpec
from tsugiki.data.tasks import Task, load_task, task_digest
from tsugiki.errors import ConfigError, TsugikiError, did_you_mean
from tsugiki.runs.store import RunRecord, Store
from tsugiki.study.missing import read_missing, seed_of, test_of
from tsugiki.study.search import Lookup, nothing_known, settings_of
from tsugiki.toml import beside, parse, read_toml, refuse_task_file

PRESETS = Path(__file__).parent.parent / "presets" / "studies"
LORA_KEYS = frozenset(LoraConfig.model_fields)
TRAIN_KEYS = frozenset(TrainConfig.model_fields) - {"seed"}
Key = tuple[str, str, str]
"""Model, task and method, by their names: a row of the tables."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration of one method on one task with one model."""

    model: ModelChoice
    task: TaskChoice
    method: MethodSpec
    settings: Mapping[str, Any]
    config: RunConfig

    @property
    def key(self) -> Key:
        return (self.model.label, task_label(self.task), self.method.name)

    def seeds(self, asked: int) -> int:
        """How many seeds of it there are when a study asks for so many: an adapter that was
        trained elsewhere has one."""
        return 1 if self.config.adapter is not None else asked

    @property
    def label(self) -> str:
        settings = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.settings.items()
        )
        return f"{' · '.join(self.key)}{' · ' if settings else ''}{settings}"


@dataclass(kw_only=True)
class StudyResult:
    """Records of every cell, and the chosen cell of each (model, task, method), scored on test."""

    study: StudySpec
    cells: list[Cell]
    records: dict[str, RunRecord] = field(default_factory=dict)
    chosen: dict[Key, Cell] = field(default_factory=dict)
    repeats: dict[Key, list[RunRecord]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be had (a cell's label, `test_of` it, `seed_of` it), and why."""

    def seeds(self, cell: Cell, part: str = "test") -> list[RunRecord]:
        """The cell's runs with every seed that were scored on the part, the first seed's first."""
        record = self.record(cell)
        runs = [
            *([record] if record else []),
            *(self.repeats.get(cell.key, []) if self.chosen.get(cell.key) is cell else []),
        ]
        return [run for run in runs if run.status == "done" and run.evaluation(part) is not None]

    def record(self, cell: Cell) -> RunRecord | None:
        return self.records.get(cell.label)

    def begun(self) -> list[tuple[Cell, RunRecord]]:
        """Cells that were begun and not finished."""
        return [
            (cell, record)
            for cell in self.cells
            if (record := self.record(cell)) is not None and record.status == "running"
        ]


def task_label(task: TaskChoice) -> str:
    """Task name, with the split and the format that are named: two splits or formats of one task
    are two rows."""
    named = [one for one in (task.split, task.format) if one]
    return f"{Path(task.name).stem} ({', '.join(named)})" if named else Path(task.name).stem


def builtin_studies() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def find_study(name: str) -> dict[str, Any]:
    """The content of a built-in study or of a file."""
    known = builtin_studies()
    if name in known:
        return read_toml(known[name])
    if Path(name).suffix != ".toml":
        raise ConfigError(
            f'study "{name}": no such study.{did_you_mean(name, known)}; or give a path to a .toml '
            "file"
        )
    given = read_toml(Path(name))
    refuse_task_file(given, name)
    return beside(given, Path(name).parent)


def parse_study(given: Mapping[str, Any], where: str) -> StudySpec:
    return parse(StudySpec, given, where)


def expand(study: StudySpec, lookup: Lookup = nothing_known) -> list[Cell]:
    """Every cell of the study that is known by now, models × tasks × methods × settings; TPE asks
    `lookup` for earlier rounds.

    Raises:
        ConfigError: a setting is wrong (named).
    """
    names = {Path(task.name).stem for task in study.tasks}
    cells = []
    _check_shared(study)
    for method in study.methods:
        for unknown in set(method.tasks or ()) - names:
            raise ConfigError(
                f'study "{study.name}" method "{method.name}": tasks names '
                f'"{unknown}".{did_you_mean(unknown, names)}'
            )
        _check_grid(study, method)
    for model, task, method in itertools.product(study.models, study.tasks, study.methods):
        if method.tasks is None or Path(task.name).stem in method.tasks:
            cells.extend(_cells_of(study, model, task, method, lookup))
    labels = [cell.label for cell in cells]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f'study "{study.name}": two cells are called “{label}”. Give models or methods '
                "different names; a task may stand there twice in "
                "two splits or formats, and each version of its data needs a study of its own"
            )
    return cells


def _check_shared(study: StudySpec) -> None:
    """Raises `ConfigError` for a shared setting that is wrong, also where every grid has values of
    its own; and for two methods of one name."""
    where = f'study "{study.name}"'
    for name, value in study.train.items():
        if name not in ("decay", "micro_batch"):  # which depend on others
            parse(TrainConfig, {"learning_rate": 1e-3, name: value}, f"{where}: [train]")
    for place, method in enumerate(study.methods):
        for other in study.methods[:place]:
            together = (
                method.tasks is None or other.tasks is None or set(method.tasks) & set(other.tasks)
            )
            if (
                method.name == other.name
                and together
                and (method.kind != other.kind or set(method.grid) != set(other.grid))
            ):
                raise ConfigError(
                    f'{where}: two methods are called "{method.name}", of another kind or with '
                    "other settings. Give them different names"
                )


def _check_grid(study: StudySpec, method: MethodSpec) -> None:
    known = TRAIN_KEYS | (LORA_KEYS if method.kind == "lora" else frozenset())
    for key, values in method.grid.items():
        if key not in known:
            raise ConfigError(
                f'study "{study.name}" method "{method.name}": grid has no '
                f'"{key}".{did_you_mean(key, known)}'
            )
        if not isinstance(values, Range) and not values:
            raise ConfigError(f'study "{study.name}" method "{method.name}": grid.{key} is empty')


def _cells_of(
    study: StudySpec, model: ModelChoice, task: TaskChoice, method: MethodSpec, lookup: Lookup
) -> list[Cell]:
    def config_of(settings: Mapping[str, Any]) -> RunConfig:
        lora = {key: value for key, value in settings.items() if key in LORA_KEYS}
        train = {
            **study.train,
            **{key: value for key, value in settings.items() if key in TRAIN_KEYS},
        }
        asked: dict[str, Any] = {
            "model": model,
            "task": task,
            "method": method.kind,
            "train": train,
            "score": study.score,
        }
        if method.adapter is not None:
            asked["adapter"] = method.adapter
            asked["train"] = {
                name: train[name]
                for name in ("max_length", "long_rows", "precision")
                if name in train
            }  # the rest is of the other methods
        elif method.kind == "lora":
            asked["lora"] = lora
        return parse(RunConfig, asked, f'study "{study.name}" method "{method.name}"')

    return [
        Cell(model=model, task=task, method=method, settings=settings, config=config_of(settings))
        for settings in settings_of(method, config_of, lookup)
    ]


def choose(result: StudyResult) -> None:
    """Fills `chosen` with the best cells by now."""
    result.chosen = best_cells(result)


def best_cells(result: StudyResult) -> dict[Key, Cell]:
    """The cell with the best validation score for each (model, task, method); the first of the
    grid on a tie."""
    best: dict[Key, Cell] = {}
    for cell in result.cells:
        value = validation_score(result, cell)
        if value is not None and (
            cell.key not in best or value > (validation_score(result, best[cell.key]) or 0.0)
        ):
            best[cell.key] = cell
    return best


def with_seed(config: RunConfig, number: int) -> RunConfig:
    """The same configuration with the seed `number` places on."""
    return config.model_copy(
        update={"train": config.train.model_copy(update={"seed": config.train.seed + number})}
    )


def validation_score(result: StudyResult, cell: Cell) -> float | None:
    record = result.record(cell)
    return (
        record.main_score("validation") if record is not None and record.status == "done" else None
    )


def collect(study: StudySpec, store: Store) -> StudyResult:
    """What is on disk of a study: each cell's newest record over today's data and one set of
    weights a model, the choice among them, and what was missing when it last ran. Records of a
    task that cannot be read today stay: nothing says that they are of other data."""
    tasks = {choice: readable_task(choice) for choice in study.tasks}
    newest_first = sorted(
        store.records(), key=lambda record: -(record.folder / "asked.json").stat().st_mtime
    )
    found: dict[RunConfig, list[RunRecord]] = {}
    for record in newest_first:
        if record.config.task in tasks and _fits(record, tasks[record.config.task]):
            found.setdefault(record.config, []).append(record)
    first_cells = {cell.config for cell in expand(study)}
    weights: dict[str, str] = {}
    for record in newest_first:
        if record.config in first_cells and record in found.get(record.config, []):
            weights.setdefault(record.config.model.label, record.with_what["model_sha256"])

    def lookup(config: RunConfig) -> RunRecord | None:
        wanted = weights.get(config.model.label)
        return next(
            (
                record
                for record in found.get(config, [])
                if record.with_what["model_sha256"] == wanted
            ),
            None,
        )

    result = StudyResult(study=study, cells=expand(study, lookup))
    result.records = {
        cell.label: one for cell in result.cells if (one := lookup(cell.config)) is not None
    }
    choose(result)
    for key, cell in result.chosen.items():
        for number in range(1, cell.seeds(study.seeds)):
            config = with_seed(cell.config, number)
            repeated = lookup(config)
            result.repeats.setdefault(key, []).extend([repeated] if repeated else [])
    result.missing = {
        label: reason
        for label, reason in read_missing(store.root, study).items()
        if not _is_there(result, label)
    }
    return result


def _is_there(result: StudyResult, label: str) -> bool:
    """Whether what was missing has been had since."""
    for cell in result.cells:
        record = result.record(cell)
        if label == cell.label:
            return record is not None and record.status in ("done", "failed", "pruned")
        if label == test_of(cell.label):
            return (
                record is None
                or record.evaluation("test") is not None
                or result.chosen.get(cell.key) is not cell
            )
        for number in range(1, cell.seeds(result.study.seeds)):
            if label == seed_of(cell.label, number + 1):
                return any(
                    run.config == with_seed(cell.config, number) and run.status == "failed"
                    for run in result.repeats.get(cell.key, [])
                ) or any(run.config == with_seed(cell.config, number) for run in result.seeds(cell))
    return True  # of a cell that is no longer there


def readable_task(choice: TaskChoice) -> Task | None:
    """The task; None where its file or its data cannot be read."""
    try:
        return load_task(choice)
    except (TsugikiError, OSError):
        return None


def _fits(record: RunRecord, task: Task | None) -> bool:
    """Whether a record is of today's task file and data, as far as they can be read."""
    return task is None or (
        record.with_what.get("task_sha256") == task_digest(task)
        and bool(record.with_what["data"] == task.files)
    )
