"""What Python gets back: a run and a study that show themselves in a notebook, as tables, figures
and data frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsugiki.errors import TsugikiError, how_to_install
from tsugiki.report.compare import Comparison, compare_runs
from tsugiki.report.figures import Figure, all_figures, run_figures
from tsugiki.report.headline import headline
from tsugiki.report.material import Material, gather
from tsugiki.report.numbers import comparison_rows, results_rows
from tsugiki.report.page import drawn_tables
from tsugiki.report.svg import stand_alone
from tsugiki.report.table import Estimated, Said, Table, column, phrase
from tsugiki.report.tables import all_tables
from tsugiki.report.texts import values_text
from tsugiki.runs.reading import RunRecord, read_history
from tsugiki.score.failures import CLASSES
from tsugiki.score.metrics import Score
from tsugiki.study.cells import StudyResult
from tsugiki.study.missing import study_folder
from tsugiki.words import Language, say

if TYPE_CHECKING:
    import pandas

RunRows = Literal["scores", "steps", "validations", "answers"]
StudyRows = Literal["results", "comparison"]
Rows = Sequence[Mapping[str, object]]
PARTS = ("validation", "test")


class Svg(str):
    """A figure as SVG text, which a notebook draws."""

    def _repr_svg_(self) -> str:
        return str(self)


@dataclass(frozen=True, kw_only=True)
class RunResult(RunRecord):
    """One run as it stands on disk; what `tsugiki.run` returns. A notebook shows its scores.

    `status` is done, failed, pruned or running, `outcome.reason` why it failed; `config`,
    `provenance`, `outcome` and `folder` are what is kept of it. `main_score(part)` is the score
    that chooses (a share of 1, None where the part was not scored), `scored(part)` all scores of a
    part with intervals and `failures` (answers by class), `answers(part)` every answer.
    """

    language: Language = "en"

    @classmethod
    def of(cls, record: RunRecord, language: Language = "en") -> RunResult:
        kept = {field.name: getattr(record, field.name) for field in fields(RunRecord)}
        return cls(**kept, language=language)

    def compare(self, other: RunRecord, part: str | None = None) -> Comparison:
        """The paired difference `self` − `other` of the main score, as `tsugiki compare` has it.

        Args:
            other: a run that was scored on the same examples.
            part: `validation` or `test` (default: test where both were scored on it).

        Returns:
            `difference` with its 95 % interval `low`, `high` (shares of 1), McNemar's test where
            answers are right or wrong, the answers that `changed`.

        Raises:
            RunError: a run was not scored on the part, or they were scored on different examples.
        """
        both = all(run.scores("test") is not None for run in (self, other))
        return compare_runs(self, other, part or ("test" if both else "validation"))

    def frame(self, of: RunRows = "scores") -> pandas.DataFrame:
        """A data frame of the run.

        Args:
            of: `scores` (a row for each part and score: `part`, `score`, `value`, `low`, `high`,
                `n`), `steps` (a row for each step: `loss` in nats a target token, `norm` of the
                gradient, `learning_rate`, `step_s` in seconds, `step_tokens`), `validations` (the
                sample of validation during training) or `answers` (a row for each kept answer).

        Raises:
            TsugikiError: pandas is not installed, or `of` is none of these.
        """
        rows: dict[str, Callable[[], Rows]] = {
            "scores": self._scores,
            "steps": self._steps,
            "validations": self._validations,
            "answers": self._answers,
        }
        _known(of, tuple(rows))
        return _frame(rows[of]())

    def _scores(self) -> Rows:
        return [
            {"part": part, **_of_score(score)}
            for part in PARTS
            if (scores := self.scores(part)) is not None
            for score in scores.scores
        ]

    def _steps(self) -> Rows:
        columns: Mapping[str, Sequence[float]] = asdict(read_history(self.folder))
        numbers = range(len(columns["loss"]))
        return [
            {"step": number + 1, **{name: values[number] for name, values in columns.items()}}
            for number in numbers
        ]

    def _validations(self) -> Rows:
        seen = self.validations
        return [
            {"step": own.step, **_of_score(score)} for own in seen for score in own.scores.scores
        ]

    def _answers(self) -> Rows:
        scored = [part for part in PARTS if self.scores(part) is not None]
        return [
            {"part": part, **answer.model_dump()}
            for part in scored
            for answer in self.answers(part)
        ]

    @cached_property
    def figures(self) -> dict[str, Svg]:
        """Figures by name, as SVG text that a notebook draws: `loss` over the steps, `curve` (the
        sample of validation, where it was looked at)."""
        return _svgs(run_figures(self, self.language))

    def _repr_html_(self) -> str:
        """Scores and answers by class; of a failed run, why."""
        reason = self.outcome.reason
        said = f"<p>{escape(reason)}</p>" if reason else ""
        return said + "".join(_html(table, self.language) for table in _run_tables(self))


@dataclass(kw_only=True)
class StudyReport(StudyResult):
    """A study and what is said of it; what `tsugiki.run_study` returns. A notebook shows each
    task's verdict and the table of scores.

    `records` holds every run by its configuration's label, `chosen` what was chosen by validation
    for each (model, task, method), `repeats` the other seeds, `missing` what could not be had and
    why. `folder` is where the report's pages, tables and figures lie.
    """

    root: Path
    language: Language = "en"

    @classmethod
    def of(cls, result: StudyResult, root: Path, language: Language = "en") -> StudyReport:
        kept = {field.name: getattr(result, field.name) for field in fields(StudyResult)}
        return cls(**kept, root=root, language=language)

    @cached_property
    def material(self) -> Material:
        """What the report is made from: findings, standings, tasks."""
        return gather(self)

    @property
    def folder(self) -> Path:
        """The folder of the report."""
        return study_folder(self.root, self.study)

    @property
    def statements(self) -> list[str]:
        """The verdict of each task in a sentence, then what is missing."""
        verdicts = headline(self.material, self.language).verdicts
        return [*verdicts, *self.material.not_had(self.language)]

    def run(self, label: str) -> RunResult:
        """The run of the configuration with that label (`records` lists them).

        Raises:
            TsugikiError: no run has that label.
        """
        _known(label, tuple(self.records))
        return RunResult.of(self.records[label], self.language)

    def frame(self, of: StudyRows = "results") -> pandas.DataFrame:
        """A data frame of the study's numbers, those of `results.csv` or `comparison.csv`.

        Args:
            of: `results` (a row for each model, task, method, configuration, seed and metric) or
                `comparison` (a row for each pair of methods). Scores and differences are shares of
                1, times seconds, memory bytes.

        Raises:
            TsugikiError: pandas is not installed, or `of` is neither.
        """
        _known(of, ("results", "comparison"))
        if of == "results":
            return _frame([asdict(row) for row in results_rows(self.material)])
        return _frame([asdict(row) for row in comparison_rows(self.material)])

    @cached_property
    def figures(self) -> dict[str, Svg]:
        """The report's figures by the names of their files, as SVG text that a notebook draws."""
        sections = all_figures(self.material, self.language).values()
        return _svgs([figure for section in sections for figure in section])

    def _repr_html_(self) -> str:
        """Each task's verdict, and the table of scores."""
        lines = "".join(f"<li>{escape(line)}</li>" for line in self.statements)
        tables = {table.name: table for table in all_tables(self.material)}
        where = say(self.language, "python.report", folder=self.folder)
        table = _html(tables["scores"], self.language)
        return f"<ul>{lines}</ul>{table}<p>{escape(where)}</p>"


def _run_tables(run: RunResult) -> list[Table]:
    """Scores of each part; how many answers there are of each class."""
    scored = [scores for part in PARTS if (scores := run.scores(part)) is not None]
    title = phrase("python.scores", run=run.folder.name, status=run.status)
    rows = []
    for scores in scored:
        main = scores.main
        text = values_text(scores.values, main.name, main.low, main.high)
        words = Said(en=text, ja=text)
        score = Estimated(value=main.value, low=main.low, high=main.high, words=words)
        rows.append((phrase(f"label.{scores.part}"), main.name, score, main.n))
    columns = (
        column("part", "text", "python.part"),
        column("score", "text", "label.main_score"),
        column("value", "score", "label.value"),
        column("n", "number", "label.n"),
    )
    kinds = [kind for kind in CLASSES if any(kind in scores.failures for scores in scored)]
    answers = Table(
        name="answers",
        title=phrase("python.answers"),
        columns=(
            column("part", "text", "python.part"),
            *(column(kind, "number", f"failure.{kind}") for kind in kinds),
        ),
        rows=tuple(
            (phrase(f"label.{own.part}"), *(own.failures.get(kind, 0) for kind in kinds))
            for own in scored
        ),
    )
    return [Table(name="scores", title=title, columns=columns, rows=tuple(rows)), answers]


def _html(table: Table, language: Language) -> str:
    """A table with everything escaped; its notes stand in the report."""
    [drawn] = drawn_tables([table], language)
    head = "".join(f"<th>{escape(name)}</th>" for name in drawn.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in drawn.rows
    )
    return f"<table><caption>{escape(drawn.title)}</caption><tr>{head}</tr>{body}</table>"


def _svgs(figures: Sequence[Figure]) -> dict[str, Svg]:
    return {figure.name: Svg(stand_alone(figure.svg)) for figure in figures}


def _of_score(score: Score) -> dict[str, object]:
    return {
        "score": score.name,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n": score.n,
    }


def _known(given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise TsugikiError(f'"{given}": must be one of {", ".join(known)}')


def _frame(rows: Rows) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise TsugikiError(f"a data frame needs pandas. {how_to_install('pandas')}") from None
    return pandas.DataFrame.from_records([dict(row) for row in rows])
