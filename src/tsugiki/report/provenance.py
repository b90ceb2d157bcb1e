"""From what a page was made: dates, command, study, versions, device, checksums. No torch here.

Absolute paths are shown by their last part: a page is passed on, a home folder is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime

from tsugiki.files import without_folders
from tsugiki.report.table import Content, Said, Table, column, phrase
from tsugiki.runs.reading import RunRecord
from tsugiki.study.cells import StudyResult

COLUMNS = (column("item", "text", "label.item"), column("value", "text", "label.value"))


def study_text(result: StudyResult) -> str:
    """The study with every default left out, as JSON."""
    content = result.study.model_dump(mode="json", exclude_defaults=True)
    return without_folders(json.dumps(content, ensure_ascii=False, indent=1))


def provenance_table(result: StudyResult, command: str = "") -> Table:
    """A row for each thing that was used."""
    records = [*result.records.values(), *(run for own in result.repeats.values() for run in own)]
    rows = list[tuple[Content, ...]]()
    rows.append((phrase("provenance.trained"), _when(records)))
    if command:
        rows.append((phrase("provenance.command"), without_folders(command)))
    digest = hashlib.sha256(study_text(result).encode()).hexdigest()
    rows.append((phrase("provenance.study"), f"{result.study.name}, sha256 {digest}"))
    rows += _rows(records)
    note = phrase("provenance.note")
    title = phrase("provenance.title")
    return Table(name="provenance", title=title, columns=COLUMNS, rows=tuple(rows), notes=(note,))


def _when(records: list[RunRecord]) -> Said:
    """The first start and the last end, in UTC to the minute; records from before have none."""
    times = [
        datetime.fromisoformat(time)
        for record in records
        for time in (record.outcome.started, record.outcome.ended)
        if time
    ]
    if not times:
        return phrase("provenance.unknown", runs=len(records))
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (min(times), max(times)))
    return phrase("provenance.between", first=first, last=last, runs=len(records))


def _rows(records: list[RunRecord]) -> Iterator[tuple[Content, ...]]:
    devices = sorted({record.provenance.device for record in records})
    yield phrase("provenance.device"), "; ".join(devices)
    versions = {tuple(sorted(record.provenance.versions.items())) for record in records}
    for own in sorted(versions):
        yield phrase("provenance.versions"), ", ".join(f"{name} {text}" for name, text in own)
    models = {(record.config.model.label, record.provenance.model_sha256) for record in records}
    for label, digest in sorted(models):
        yield phrase("provenance.model", label=label), f"sha256 {digest}"
    files = {
        (record.config.task.label, part, digest)
        for record in records
        for part, own in record.provenance.data.items()
        for digest in own.values()
    }
    for label, part, digest in sorted(files):
        yield phrase("provenance.data", label=label, part=part), digest
