"""Looks before anything runs: a whole file checked with all it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsugiki.cli.first_look import named_file
from tsugiki.cli.task_rows import describe
from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice
from tsugiki.config.study import StudySpec
from tsugiki.data.prompts import render
from tsugiki.data.tasks import Task
from tsugiki.errors import ConfigError, TsugikiError
from tsugiki.fast.cuda_graphs import why_eager
from tsugiki.model.folder import resolve
from tsugiki.model.loading import find_base, load_base, load_tokenizer
from tsugiki.model.look import look_of
from tsugiki.model.tokenizers import tokenizer_notes
from tsugiki.report.notes import leak_notes
from tsugiki.report.planned import basis_text, needed_text, plan_text
from tsugiki.runs.elsewhere import read_wanted
from tsugiki.runs.request import run_config
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, expand, fetch_widths, parse_study
from tsugiki.study.fitting import device_for
from tsugiki.study.forecast import Part, forecast
from tsugiki.study.plan import keep_new, plan_of
from tsugiki.study.preflight import check_model, check_task, raise_it
from tsugiki.toml import beside, is_task_file, override, read_toml
from tsugiki.train.memory import NoRoom
from tsugiki.words import Language, in_language, say


def overlaps(task: Task, language: Language) -> Iterator[str]:
    """A line for each part that shares rows with another one."""
    for said in leak_notes(task, language):
        yield say(language, "check.note", note=said)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a study is to be planned for; what nobody gave is the study file's. `keep`: the plan is
    written beside the study's runs."""

    out: Path
    keep: bool = True
    margin: float | None = None
    power: float | None = None


def check_file(
    path: Path,
    changes: Sequence[str] = (),
    *,
    load: bool = False,
    planned: Planned | None = None,
    memory_gib: float | None = None,
    language: Language = "en",
) -> Iterator[str]:
    """Checks a task, run or study file and all it names; yields what was found in order. Raises
    the first error.

    What training holds is said of this machine's device, or of one of `memory_gib`. Without
    weights all is looked at that does not need them; with `load` the models are loaded
    too, and all is refused that a run refuses.
    """
    path = named_file(path)
    given = beside(override(read_toml(path), changes), path.parent)
    if planned is not None and (planned.margin or planned.power) and "methods" not in given:
        raise ConfigError("--margin, --power: a comparison is planned of a study: name its file")
    if is_task_file(given):
        task = check_task(TaskChoice(name=str(path)))
        yield in_language(language, describe(task))
        yield from (say(language, "check.note", note=note) for note in task.notes)
        yield from overlaps(task, language)
        yield "ok"
        return
    study = None
    if "methods" in given:
        study = parse_study(given, str(path))
        fetch_widths(study)
        configs = [cell.config for cell in expand(study)]
        yield say(language, "check.study", name=study.name, count=len(configs))
    else:
        configs = [run_config(given, str(path))]
    choices = dict.fromkeys(config.task for config in configs)
    tasks = {choice: check_task(choice) for choice in choices}
    for task in tasks.values():
        yield in_language(language, describe(task))
        yield from overlaps(task, language)
    device = device_for(memory_gib)
    for choice in {config.model: None for config in configs}:
        own_configs = [config for config in configs if config.model == choice]
        no_room = list[str]()
        refuse = _collect_no_room(no_room, language) if study is not None else raise_it
        for line in check_model(choice, own_configs, tasks, refuse, device):
            yield in_language(language, line)
        yield from no_room
        folder = resolve(choice)
        for line in tokenizer_notes(folder, load_tokenizer(folder), _lines_of(tasks.values())):
            yield in_language(language, line)
        if load:
            yield from _load(choice, own_configs, language)
    if study is not None and planned is not None:
        yield from study_lines(study, planned, tasks, language)
    if not load:
        yield say(language, "check.not_loaded")
    yield "ok"


def _collect_no_room(
    lines: list[str], language: Language
) -> Callable[[TsugikiError, Sequence[RunConfig]], None]:
    """What does not fit on this device is a row of the study's report with its reason: here it is
    a line, and the rest is looked at."""

    def refuse(error: TsugikiError, affected: Sequence[RunConfig]) -> None:
        if not isinstance(error, NoRoom):
            raise error
        lines.append(say(language, "check.no_room", count=len(affected), error=error.message))

    return refuse


def study_lines(
    study: StudySpec, planned: Planned, tasks: Mapping[TaskChoice, Task], language: Language
) -> Iterator[str]:
    """How long a study will take, how much disk, and what its comparisons can find."""
    store = Store(planned.out)
    for choice in study.forgetting:
        content = read_wanted(choice).content
        if isinstance(content, Task):
            yield say(language, "check.forgetting", what=describe(content))
        else:
            values = {"name": content.name, "count": len(content.texts)}
            yield say(language, "check.forgetting_texts", **values)
    result = collect(study, store)
    by_label = {choice.label: task for choice, task in tasks.items()}
    yield from _forecast_lines(forecast(result, store, by_label), language)
    wanted = planned.power or study.power
    if wanted is None and planned.margin is None:
        yield say(language, "check.no_plan")
        return
    plan = plan_of(result, planned.margin or study.margin, wanted or 0.8)
    for pair in plan.pairs:
        yield say(language, "check.plan", text=plan_text(pair, plan.alpha, language))
        equal, detect = needed_text(pair.equal, language), needed_text(pair.detect, language)
        yield say(language, "check.plan_equal", power=pair.power, needed=equal)
        yield say(language, "check.plan_detect", power=pair.power, needed=detect)
        yield f"  {basis_text(pair, language)}"
    if not planned.keep:
        return
    if kept := keep_new(result, store.root, plan):
        yield say(language, "check.plan_kept", path=kept)
    elif plan.pairs:
        yield say(language, "check.plan_not_kept")


def _forecast_lines(parts: Sequence[Part], language: Language) -> Iterator[str]:
    if not parts:
        yield say(language, "check.all_run")
        return
    for part in parts:
        yield say(
            language,
            "check.time",
            name=" · ".join(part.key),
            runs=part.runs,
            steps=part.steps,
            duration=_about(part.seconds, part.measured, language),
        )
    measured = all(part.measured for part in parts)
    if not measured:
        yield say(language, "check.guessed")
    yield say(
        language,
        "check.in_all",
        duration=_about(sum(part.seconds for part in parts), measured, language),
        kept=sum(part.kept_bytes for part in parts) / 2**30,
        passing=max(part.passing_bytes for part in parts) / 2**30,
    )
    yield from _halved_lines(parts, measured, language)


def _halved_lines(parts: Sequence[Part], measured: bool, language: Language) -> Iterator[str]:
    """What successive halving would save, where a search could do it."""
    halved = [part for part in parts if part.halved_s is not None]
    saved = sum(part.train_s - part.halved_s for part in halved if part.halved_s is not None)
    left = sum(part.seconds for part in parts) - saved
    if halved and saved > 0:
        yield say(
            language,
            "check.halved",
            names=", ".join(dict.fromkeys(part.key[2] for part in halved)),
            runs=" + ".join(str(part.halved_runs) for part in halved),
            duration=_about(left, measured, language),
        )


def _about(seconds: float, measured: bool, language: Language) -> str:
    key = "check.about" if measured else "check.at_least"
    return say(language, key, duration=duration(seconds, language))


def duration(seconds: float, language: Language = "en") -> str:
    """`40 s`, `3 min 20 s`, `2 h 5 min`, as exact as a guess may be."""
    if seconds < 60:
        return say(language, "check.seconds", seconds=max(1, round(seconds)))
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if not hours:
        rest = int(seconds % 60)
        return say(language, "check.minutes_seconds", minutes=minutes, seconds=rest)
    return say(language, "progress.hours", hours=hours, minutes=minutes)


def _load(choice: ModelChoice, configs: Sequence[RunConfig], language: Language) -> Iterator[str]:
    for method, precision in {(config.method, config.train.precision): None for config in configs}:
        source = find_base(choice, method, precision)
        base = load_base(source)
        yield say(
            language,
            "check.loaded",
            model=choice.label,
            method=method,
            base=source.numerics.base,
            compute=source.numerics.compute,
            device=source.device,
        )
        for note in look_of(base.model).notes:
            yield say(language, "check.note", note=note)
        if (said := why_eager(base.model, base.device, base.numerics, "auto")) is not None:
            yield say(language, "check.note", note=said)


def _lines_of(tasks: Iterable[Task], most: int = 1000) -> list[str]:
    """Prompts and answers of the tasks, at most so many."""
    lines = []
    for task in tasks:
        for example in task.examples["validation"][:most]:
            lines += [render(task.template, example), example.target]
    return list(dict.fromkeys(lines))[:most]


def next_command(path: Path) -> str:
    """What one does with a file that was found right."""
    given = read_toml(named_file(path))
    if is_task_file(given):
        return f"tsugiki study --model MODEL --task {path}"
    return f"tsugiki study {path}" if "methods" in given else f"tsugiki run {path}"
