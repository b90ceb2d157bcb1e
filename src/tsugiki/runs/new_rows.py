"""New rows through a finished run: its own prompt from their fields, answered in batches, kept as
they come, so that a killed call goes on where it stood."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from tsugiki.config.fields import Record
from tsugiki.config.task import TaskSpec
from tsugiki.data.prompts import Tokens, check_ids, tokenize
from tsugiki.data.rows import arrow_for, read_rows, row_of_line
from tsugiki.data.tasks import Task, few_shots, load_task, task_digest, unanswered
from tsugiki.data.text import normalise
from tsugiki.errors import ConfigError, DataError, RunError, first_line
from tsugiki.files import sha256_of, write_atomically
from tsugiki.model.loading import Base
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import load_trained
from tsugiki.runs.inputs import task_of
from tsugiki.runs.preflight import longest_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.choices import candidate_sums
from tsugiki.score.failures import is_candidate
from tsugiki.score.predict import Prediction, predict
from tsugiki.toml import Given
from tsugiki.words import Message

AT_ONCE = 256  # rows between two writes
ADDED = ("prediction", "failure")
WRITTEN = (".jsonl", ".csv", ".parquet")


class NewAnswer(Record):
    """What a row gets: the answer, its failure class (empty where nothing speaks against it), the
    summed log-likelihood of each candidate. `row` is its number."""

    row: str
    prediction: str | None = None
    failure: str = "too_long"
    log_p: tuple[float, ...] = ()


class Source(Record):
    """What answers were made of."""

    run: str
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a file of rows came to: where the answers are, rows, those that an earlier call had
    answered, why answers are none (by class), and how many are right, of so many whose target is
    known."""

    file: str
    rows: int
    earlier: int
    failures: Mapping[str, int]
    right: int
    known: int


def added_columns(spec: TaskSpec) -> list[str]:
    """The columns that answers have: a log-likelihood for each label, or for each field that holds
    a candidate."""
    return [*ADDED, *(f"log_p:{name}" for name in spec.fixed_answers or spec.choices)]


def _check_row(row: Given, added: Sequence[str], where: str) -> None:
    """Raises `DataError` for a row that could not be written with its answer."""
    if clash := sorted({*row} & {*added}):
        raise DataError(f'{where}: has a column "{clash[0]}", as answers have. Rename or remove it')
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: holds half of a character (a lone surrogate), which no file can hold. "
            "Correct it"
        ) from None


class Answerer:
    """A run's model, loaded once, and its task."""

    def __init__(self, record: RunRecord, task: Task, base: Base | None = None):
        """`base`: a model that is loaded already, instead of the run's."""
        self.config, self.task = record.config, task
        self.added = added_columns(task.spec)
        self.base: Base = base or load_trained(record)

    def columns(self, answer: NewAnswer) -> dict[str, object]:
        """An answer by the names of `added`."""
        sums = answer.log_p or [None] * (len(self.added) - len(ADDED))
        return dict(zip(self.added, [answer.prediction, answer.failure, *sums], strict=True))

    def tokens(
        self, rows: Iterable[tuple[int, Given]], source: str
    ) -> tuple[list[Tokens], list[str]]:
        """Rows as ids, and the numbers of those that do not fit. Raises `DataError` for a row
        that cannot be read."""
        base, left_out = self.base, list[str]()
        tokens = tokenize(
            base.tokenizer,
            self.task,
            unanswered(self.task.spec, rows, source),
            longest_of(self.config, base.max_positions),
            self.config.score.max_new_tokens,
            stops=base.stops,
            leave_out=left_out,
            shots=self.task.examples["train"],
        )
        check_ids(base.tokenizer, tokens, base.vocab_rows)
        return tokens, left_out

    def answers(self, rows: Sequence[Tokens]) -> list[NewAnswer]:
        """What each row gets, in their order."""
        base, spec, score = self.base, self.task.spec, self.config.score
        model, tokenizer, numerics = base.model, base.tokenizer, base.numerics
        limit = score.max_new_tokens or spec.max_new_tokens
        said = predict(
            model, tokenizer, rows, max_new_tokens=limit, config=score, numerics=numerics
        )
        sums: Sequence[Sequence[float]] = [()] * len(rows)
        if spec.closed:
            sums = candidate_sums(model, tokenizer, rows, numerics)
        return [
            NewAnswer(row=a.id, prediction=a.answer, failure=_failure(a), log_p=tuple(each))
            for a, each in zip(said, sums, strict=True)
        ]


def row_of_fields(spec: TaskSpec, values: Mapping[str, str]) -> Given:
    """A row as a file of the task would hold it, of what it is asked by (`TaskSpec.asked_by`)."""
    if spec.messages is None:
        return {**values}
    if spec.formatting == "sharegpt":
        return {"conversations": [{"from": "human", "value": values["user"]}]}
    return {spec.messages: [{"role": "user", "content": values["user"]}]}


def unchanged_task(record: RunRecord) -> Task:
    """The run's task without its data; with the worked examples of an untouched base. Raises
    `RunError` where the task file has changed."""
    config, task = record.config, task_of(record)
    if task_digest(task) != record.provenance.task_sha256:
        raise RunError(
            f"{record.folder}: the task file {config.task.name} has changed since this run was "
            "trained: prompts or labels may be others. Put it back, or train again"
        )
    if not config.shots:
        return replace(task, examples={"train": ()})
    shots = few_shots(load_task(config.task), config.shots, config.train.seed)
    return replace(task, examples={"train": shots})


def _failure(said: Prediction) -> str:
    """The class of an answer, empty where there is nothing to say against it: it is right, or its
    target is not known and it is a candidate or, for free text, one that ended."""
    if not normalise(said.answer):
        return "empty"
    fine = is_candidate(said.failure) if not said.target else said.failure.startswith("right")
    return "" if fine else said.failure


def label_file(
    record: RunRecord,
    source: Path,
    to: Path | None = None,
    events: Events = SILENT,
    *,
    at_once: int = AT_ONCE,
) -> Labelled:
    """Answers every row of a file and writes them, with the file's own columns, to `to` (`WRITTEN`;
    default: NAME-answers beside the rows). What is answered lies in a hidden file beside it until
    all is.

    Raises:
        DataError: a row cannot be read, or has a column that answers have; `to` is there already.
    """
    if not source.is_file():
        raise DataError(Message("error.no_file", path=source))
    ending = source.suffix if source.suffix.lower() != ".json" else ".jsonl"
    to = to or source.with_name(f"{source.stem}-answers{ending}")
    rows, task = _rows_to_answer(source, to), unchanged_task(record)
    for number, row in rows:
        _check_row(row, added_columns(task.spec), f"{source} row {number}")
    answerer = Answerer(record, task)
    tokens, left_out = answerer.tokens(rows, str(source))
    head = Source(run=record.folder.name, sha256=sha256_of(source), rows=len(rows))
    part = to.with_name(f".{to.name}.part")
    answers = _kept(part, head)
    earlier = len(answers)
    _answer_rest(answerer, tokens, answers, part, head, events.answers("new"), at_once)
    whole = [
        {**row, **answerer.columns(answers.get(str(number)) or NewAnswer(row=str(number)))}
        for number, row in rows
    ]
    _refuse_there(to)
    write_rows(to, whole, [*_names(rows), *answerer.added], like=source)
    part.unlink()
    closed = task.spec.closed  # of free text a class says nothing about being right
    known = [each.example.id for each in tokens if closed and each.example.target]
    failures = Counter(answer.failure for answer in answers.values() if answer.failure)
    return Labelled(
        file=str(to),
        rows=len(rows),
        earlier=earlier,
        failures=failures | Counter({"too_long": len(left_out)} if left_out else {}),
        right=sum(not answers[number].failure for number in known),
        known=len(known),
    )


def _rows_to_answer(source: Path, to: Path) -> list[tuple[int, Given]]:
    """The rows of a file. Raises where the answers could not be written."""
    if to.suffix.lower() not in WRITTEN:
        raise ConfigError(f"--to {to}: must end in one of {', '.join(WRITTEN)}")
    _refuse_there(to)
    if not to.parent.is_dir():
        raise DataError(f"{to}: its folder does not exist. Make it first")
    rows: list[tuple[int, Given]] = list(read_rows(source))
    if not rows:
        raise DataError(Message("error.no_rows", path=source))
    if to.suffix.lower() == ".parquet":  # what cannot be written is known before it is answered
        _parquet(to, [row for _, row in rows], _names(rows))
    return rows


def _names(rows: Sequence[tuple[int, Given]]) -> list[str]:
    """All columns, in the order in which they come."""
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _refuse_there(to: Path) -> None:
    if to.exists():
        raise DataError(Message("error.never_overwritten", path=to))


def _answer_rest(
    answerer: Answerer,
    tokens: Sequence[Tokens],
    answers: dict[str, NewAnswer],
    part: Path,
    head: Source,
    heard: Callable[[int, int], None] | None,
    at_once: int,
) -> None:
    """Answers what has none yet, `at_once` rows between two writes to `part`."""
    waiting = [row for row in tokens if row.example.id not in answers]
    with part.open("a", encoding="utf-8") as file:
        if not part.stat().st_size:
            file.write(head.model_dump_json() + "\n")
        for start in range(0, len(waiting), at_once):
            some = waiting[start : start + at_once]
            for answer in answerer.answers(some):
                answers[answer.row] = answer
                file.write(answer.model_dump_json() + "\n")
            file.flush()
            if heard:
                heard(len(answers), len(tokens))


def _kept(part: Path, head: Source) -> dict[str, NewAnswer]:
    """What an earlier call answered, by row number; its last line may have been cut off, and goes.
    Raises `DataError` where it was another run or another file."""
    if not part.exists():
        return {}
    content = part.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        same = not lines or Source.model_validate_json(lines[0]) == head
        kept = [NewAnswer.model_validate_json(line) for line in lines[1:]]
    except ValidationError:
        same, kept = False, []
    if not same:
        raise DataError(
            f"{part}: answers of another run or of another file, or damaged. Delete it, or choose "
            "another --to"
        )
    if len(whole) < len(content):
        write_atomically(part, whole)
    return {answer.row: answer for answer in kept}


def write_rows(path: Path, rows: Sequence[Given], names: Sequence[str], like: Path) -> None:
    """Rows in the format of the path's ending. A CSV has a byte order mark where the file that it
    is `like` is a CSV with one, as Excel needs it."""
    ending = path.suffix.lower()
    if ending == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_atomically(path, text.encode())
    elif ending == ".csv":
        with like.open("rb") as file:
            marked = like.suffix.lower() == ".csv" and file.read(3) == b"\xef\xbb\xbf"
        table = io.StringIO()
        writer = csv.DictWriter(table, names)  # ends lines as it quotes those within a cell
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        write_atomically(path, table.getvalue().encode("utf-8-sig" if marked else "utf-8"))
    else:
        write_atomically(path, _parquet(path, rows, names))


def _cell(value: object) -> object:
    """A value of a CSV cell: lists and objects as JSON."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _parquet(path: Path, rows: Sequence[Given], names: Sequence[str]) -> bytes:
    arrow, file = arrow_for(path), io.BytesIO()
    try:
        table = arrow.table({name: [row.get(name) for row in rows] for name in names})
        arrow.parquet.write_table(table, file)
    except (arrow.ArrowException, TypeError, ValueError, OverflowError) as broken:
        raise DataError(
            f"{path}: cannot be written as Parquet: {first_line(broken)}. Take --to NAME.jsonl"
        ) from None
    return file.getvalue()


def label_lines(record: RunRecord, lines: Iterable[bytes], source: str) -> Iterator[Given]:
    """Each line (a JSON object) with its answer, as it comes."""
    answerer = Answerer(record, unchanged_task(record))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = row_of_line(line, f"{source} line {number}")
        _check_row(row, answerer.added, f"{source} line {number}")
        tokens, left_out = answerer.tokens([(number, row)], source)
        answer = NewAnswer(row=str(number)) if left_out else answerer.answers(tokens)[0]
        yield {**row, **answerer.columns(answer)}
