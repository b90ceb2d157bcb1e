"""What a study could not get, and why: kept beside its report, tried again on the next call. No
torch here.

A run that diverged or did not learn is a result and stands in its own record. What stands here is
what may go otherwise another day: no room on the device, a file that is not there, a model that is
refused, a worker that was killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tsugiki.config.old_spellings import text_in_old_spelling
from tsugiki.config.study import StudySpec
from tsugiki.errors import RunError, first_line
from tsugiki.files import write_atomically
from tsugiki.words import Message

FILE = "missing.json"


def study_folder(root: Path, study: StudySpec) -> Path:
    """`ROOT/studies/NAME-digest`: a changed study file is another folder, so no report is
    overwritten by another study's."""
    digest = hashlib.sha256(text_in_old_spelling(study.model_dump_json()).encode()).hexdigest()[:6]
    return root / "studies" / f"{study.name}-{digest}"


def test_of(label: str) -> str:
    """What a cell's answers to test are called among what is missing."""
    return f"{label} · test"


def seed_of(label: str, number: int) -> str:
    """What a cell's run with another seed is called (the study's first seed is 1)."""
    return f"{label} · seed {number}"


def elsewhere_of(name: str) -> str:
    """What a run's scores on what it was not tuned on are called; or, by its name, one of these
    that cannot be read."""
    return f"{name} · forgetting"


def keep_missing(root: Path, study: StudySpec, missing: Mapping[str, str]) -> None:
    """Writes what is missing now (label → reason); removes the list where nothing is."""
    path = study_folder(root, study) / FILE
    if missing:
        write_atomically(path, json.dumps(dict(missing), indent=1, ensure_ascii=False).encode())
    else:
        path.unlink(missing_ok=True)


def read_missing(root: Path, study: StudySpec) -> dict[str, str]:
    """What was missing when the study last ran. Raises `RunError` naming a damaged file."""
    path = study_folder(root, study) / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(label): str(reason) for label, reason in content.items()}
    except (OSError, ValueError, AttributeError) as broken:
        said = first_line(broken)
        raise RunError(Message("error.damaged_missing", path=path, reason=said)) from None
