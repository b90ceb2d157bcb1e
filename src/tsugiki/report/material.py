"""What a report is made from, read and compared once for both languages. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsugiki.config.run import TaskChoice
from tsugiki.data.tasks import Task, load_task
from tsugiki.errors import TsugikiError, reason_of
from tsugiki.report.finding import Finding, findings
from tsugiki.report.forgetting import Change, changes, forgetting_statements
from tsugiki.report.planned import planned_statements
from tsugiki.report.shortfall import not_had, shortfalls
from tsugiki.report.standing import Standing, standings
from tsugiki.report.statements import statements
from tsugiki.study.cells import Key, StudyResult, readable_task
from tsugiki.words import Language


@dataclass(frozen=True, kw_only=True)
class Material:
    """`unread`: tasks that cannot be read now, and why; `command`: what made the runs."""

    result: StudyResult
    tasks: Mapping[str, Task]
    unread: Mapping[str, str]
    standings: Mapping[Key, Standing]
    findings: Sequence[Finding]
    changes: Sequence[Change] = ()
    command: str = ""

    def statements(self, language: Language) -> list[str]:
        """What the finding says; what was planned, and what became of the rest."""
        return [
            *statements(self.findings, self.standings, language),
            *planned_statements(self.result, self.findings, language),
            *forgetting_statements(self.changes, language),
        ]

    def shortfalls(self, language: Language) -> list[str]:
        """What is missing, and what did not learn."""
        return shortfalls(self.result, self.standings, self.unread, language)

    def not_had(self, language: Language) -> list[str]:
        """What is missing, without what the finding says of methods."""
        return not_had(self.result, self.unread, language)


def gather(result: StudyResult, command: str = "") -> Material:
    """Loads the tasks, and compares."""
    tasks, unread = dict[str, Task](), dict[str, str]()
    for choice in result.study.tasks:
        try:
            tasks[choice.label] = load_task(choice)
        except (TsugikiError, OSError) as broken:
            unread[choice.label] = reason_of(broken)
    by_key = standings(result, tasks)
    return Material(
        result=result,
        tasks=tasks,
        unread=unread,
        standings=by_key,
        findings=findings(result, by_key),
        changes=changes(result, _forgetting_tasks(result, tasks)),
        command=command,
    )


def _forgetting_tasks(result: StudyResult, known: Mapping[str, Task]) -> dict[str, Task]:
    """Tasks that nothing is tuned on, by their names; those that can be read now."""
    tasks = {}
    for choice in result.study.forgetting:
        if not isinstance(choice, TaskChoice):
            continue
        same = choice in result.study.tasks  # read already
        task = known.get(choice.label) if same else readable_task(choice)
        if task is not None:
            tasks[choice.label] = task
    return tasks
