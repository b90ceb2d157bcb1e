"""A study file becomes cells: models × tasks × methods × grid. No torch here: reports are made
from this and the records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tsugiki.config.recipe import WIDTH_UNKNOWN, fill_method, multiple_of, needs_width
from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice, TrainConfig
from tsugiki.config.study import MethodSpec, Range, StudySpec
from tsugiki.data.tasks import Task, load_task
from tsugiki.errors import ConfigError, RunError, TsugikiError, did_you_mean
from tsugiki.model.width import known_width, width_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.request import WidthOf
from tsugiki.runs.store import Store
from tsugiki.study.kept import Kept
from tsugiki.study.kept_plan import Plan, earlier_plan, read_plan
from tsugiki.study.missing import elsewhere_of, read_missing, seed_of, test_of
from tsugiki.study.search import Lookup, Settings, nothing_known, settings_of
from tsugiki.toml import Given, beside, parse, read_toml, refuse_task_file
from tsugiki.words import Message

PRESETS = Path(__file__).parent.parent / "presets" / "studies"
TRAIN_KEYS = frozenset(TrainConfig.model_fields) - {"seed"}
Key = tuple[str, str, str]
"""Model, task and method, by their names: a row of the tables."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration of one method on one task with one model."""

    model: ModelChoice
    task: TaskChoice
    method: MethodSpec
    settings: Settings
    config: RunConfig

    @cached_property
    def key(self) -> Key:
        return (self.model.label, self.task.label, self.method.name)

    def seeds(self, wanted: int) -> int:
        """How many seeds of it there are when a study asks for so many: an adapter that was
        trained elsewhere has one."""
        return wanted if method_of(self.config).trains else 1

    @cached_property
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
    damaged: list[str] = field(default_factory=list)
    """Runs beside them that cannot be read: what is to be said of each."""
    plan: Plan | None = None
    """What was planned before test was read."""
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be had (a cell's label, `test_of` it, `seed_of` it), and why."""

    def seeds(self, cell: Cell, part: str = "test") -> list[RunRecord]:
        """The cell's runs with every seed that were scored on the part, the first seed's first."""
        record = self.record(cell)
        runs = [
            *([record] if record else []),
            *(self.repeats.get(cell.key, []) if self.chosen.get(cell.key) is cell else []),
        ]
        return [run for run in runs if run.status == "done" and run.scores(part) is not None]

    def record(self, cell: Cell) -> RunRecord | None:
        return self.records.get(cell.label)

    def begun(self) -> list[tuple[Cell, RunRecord]]:
        """Cells that were begun and not finished."""
        return [
            (cell, record)
            for cell in self.cells
            if (record := self.record(cell)) is not None and record.status == "running"
        ]


def builtin_studies() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def find_study(name: str) -> Given:
    """The content of a built-in study or of a file."""
    known = builtin_studies()
    if name in known:
        return read_toml(known[name])
    if Path(name).suffix != ".toml":
        raise ConfigError(Message("error.no_study", name=name, hint=did_you_mean(name, known)))
    given = read_toml(Path(name))
    refuse_task_file(given, name)
    return beside(given, Path(name).parent)


def parse_study(given: Given, where: str) -> StudySpec:
    return parse(StudySpec, given, where)


def fetch_widths(study: StudySpec) -> None:
    """Has the settings of every model here whose rates are left to the recipe. A model that cannot
    be had is refused where its files are looked at."""
    for model in study.models:
        if any(needs_width(method, study.train) for method in study.methods):
            with suppress(TsugikiError):
                width_of(model)


def expand(
    study: StudySpec, lookup: Lookup = nothing_known, width: WidthOf = known_width
) -> list[Cell]:
    """Every cell of the study that is known by now, models × tasks × methods × settings; TPE asks
    `lookup` for earlier rounds. `width` says how wide a model is (None: not known here), which the
    recipe's rates follow.

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
            cells.extend(_cells_of(study, model, task, method, lookup, width))
    labels = [cell.label for cell in cells]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f'study "{study.name}": two configurations are called “{label}”. Give models or '
                "methods "
                "different names; a task may stand there twice in "
                "two splits or formats, and each version of its data needs a study of its own"
            )
    return cells


def _check_shared(study: StudySpec) -> None:
    """Raises `ConfigError` for a shared setting that is wrong, also where every grid has values of
    its own; and for two methods of one name."""
    where = f'study "{study.name}"'
    for name, value in study.train.items():
        if name == "learning_rate" and multiple_of(value) is not None:
            continue  # of the recipe's
        if name not in ("decay", "micro_batch"):  # which depend on others
            parse(TrainConfig, {"learning_rate": 1e-3, name: value}, f"{where}: [train]")
    for index, method in enumerate(study.methods):
        for other in study.methods[:index]:
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
    known = TRAIN_KEYS | method_of(method).grid_keys
    for key, values in method.grid.items():
        if key not in known:
            raise ConfigError(
                f'study "{study.name}" method "{method.name}": grid has no '
                f'"{key}".{did_you_mean(key, known)}'
            )
        if not isinstance(values, Range) and not values:
            raise ConfigError(f'study "{study.name}" method "{method.name}": grid.{key} is empty')


def _cells_of(
    study: StudySpec,
    model: ModelChoice,
    task: TaskChoice,
    method: MethodSpec,
    lookup: Lookup,
    width: WidthOf,
) -> list[Cell]:
    shared: Mapping[str, object] = study.train
    if needs_width(method, shared):
        method, shared = fill_method(method, shared, width(model) or WIDTH_UNKNOWN)

    def config_of(settings: Settings) -> RunConfig:
        given = {key: value for key, value in settings.items() if key in TRAIN_KEYS}
        first = {"seed": study.seeds[0]} if isinstance(study.seeds, tuple) else {}
        train = {**shared, **first, **given}
        run = method_of(method).settings_of(train, settings, method)
        own = model.model_copy(update={"base": method.base or model.base})
        run |= {"model": own, "task": task, "method": method.kind, "score": study.score}
        return parse(RunConfig, run, f'study "{study.name}" method "{method.name}"')

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


def with_seed(study: StudySpec, config: RunConfig, number: int) -> RunConfig:
    """The same configuration with the study's seed of that number, the first being 0."""
    named = study.seeds
    seed = named[number] if isinstance(named, tuple) else config.train.seed + number
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def seed_cells(result: StudyResult) -> list[tuple[Cell, int, Cell]]:
    """(chosen cell, number, the same with that seed) for every further seed of what is chosen."""
    study = result.study
    return [
        (cell, number, replace(cell, config=with_seed(study, cell.config, number)))
        for cell in result.chosen.values()
        for number in range(1, cell.seeds(study.num_seeds))
    ]


def is_scored_elsewhere(result: StudyResult, cell: Cell) -> bool:
    """What was tuned, and of the untouched base the first row: that which it is set against."""
    if not result.study.forgetting:
        return False
    if method_of(cell.config).tuned:
        return True
    same = [other for other in result.cells if other.key[:2] == cell.key[:2]]
    return next(other for other in same if not method_of(other.config).tuned).key == cell.key


def validation_score(result: StudyResult, cell: Cell) -> float | None:
    record = result.record(cell)
    return (
        record.main_score("validation") if record is not None and record.status == "done" else None
    )


def collect(study: StudySpec, store: Store) -> StudyResult:
    """What is on disk of a study: each cell's newest record over today's training rows and one set
    of weights a model, the choice among them, and what was missing when it last ran. Records of a
    task that cannot be read today stay: nothing says that they are of other data."""
    known = Kept(store, {choice: readable_task(choice) for choice in study.tasks})
    known.settle_weights([cell.config for cell in expand(study, width=known.width)])
    cells = expand(study, known.record, known.width)
    result = StudyResult(study=study, cells=cells, damaged=known.damaged)
    result.records = {
        cell.label: record for cell in result.cells if (record := known.record(cell.config))
    }
    choose(result)
    for cell, _, repeat in seed_cells(result):
        repeated = known.record(repeat.config)
        result.repeats.setdefault(cell.key, []).extend([repeated] if repeated else [])
    try:
        result.plan = read_plan(store.root, study) or earlier_plan(store.root, study)
    except RunError as damaged:
        result.damaged.append(damaged.message)
    result.missing = {
        label: reason
        for label, reason in read_missing(store.root, study).items()
        if not _is_there(result, label)
    }
    return result


def _is_there(result: StudyResult, label: str) -> bool:
    """Whether what was missing has been had since."""
    if label in {elsewhere_of(choice.label) for choice in result.study.forgetting}:
        return False  # it could not be read, and nothing was asked of it since
    for cell in result.cells:
        record = result.record(cell)
        if label == elsewhere_of(cell.label):
            return record is None or _is_complete(result, cell, record)
        if label == cell.label:
            return record is not None and record.outcome.finished
        if label == test_of(cell.label):
            chosen = result.chosen.get(cell.key) is cell
            return record is None or record.scores("test") is not None or not chosen
        for number in range(1, cell.seeds(result.study.num_seeds)):
            seed = with_seed(result.study, cell.config, number)
            runs = [run for run in result.repeats.get(cell.key, []) if run.config == seed]
            if label == elsewhere_of(seed_of(cell.label, number + 1)):
                return all(_is_complete(result, cell, run) for run in runs)
            if label == seed_of(cell.label, number + 1):
                return any(run.status == "failed" or run.scores("test") for run in runs)
    return True  # of a cell that is no longer there


def _is_complete(result: StudyResult, cell: Cell, record: RunRecord) -> bool:
    """Whether a run was scored on everything that its study names, its own task aside."""
    scored = {cell.key[1], *(entry.name for entry in record.outcome.elsewhere)}
    return all(choice.label in scored for choice in result.study.forgetting)


def readable_task(choice: TaskChoice) -> Task | None:
    """The task; None where its file or its data cannot be read."""
    try:
        return load_task(choice)
    except (TsugikiError, OSError):
        return None
