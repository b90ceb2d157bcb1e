"""The plan that is kept with a study: what its comparisons can find, said before test was read. No
torch here."""

from __future__ import annotations

import json
from pathlib import Path

from tsugiki.config.fields import Record
from tsugiki.config.study import StudySpec
from tsugiki.errors import RunError, first_line
from tsugiki.files import write_atomically
from tsugiki.score.power import ALPHA
from tsugiki.study.missing import study_folder

FILE = "plan.json"


class Promise(Record):
    """For either thing that may be found ("equal": equal methods are called equal; "detect": a
    difference of one margin is told): its power as the study stands, and what it needs for the
    power that is wanted, in rows of test (with the study's seeds) and in seeds a method (with the
    test set as it is). None: no number of them suffices."""

    power: float
    rows: int | None = None
    seeds: int | None = None


class PairPlan(Record):
    """The plan of one pair of methods: when it was made, for which `margin` (points) and `power`.
    `pilot_seeds`: 0 where nothing was answered yet, and the
    variances are assumed; `disagreement`: share of rows that one of them gets right alone."""

    made: str
    margin: float
    power: float
    model: str
    task: str
    first: str
    second: str
    score: str
    test_rows: int
    seeds: int
    pilot_rows: int
    pilot_seeds: int
    disagreement: float | None = None
    row_variance: float
    seed_spread: float
    equal: Promise
    detect: Promise


class Plan(Record):
    """What was planned; `alpha` is a side's."""

    format: int = 1
    alpha: float = ALPHA
    pairs: tuple[PairPlan, ...]


def plan_path(root: Path, study: StudySpec) -> Path:
    return study_folder(root, study) / FILE


def read_plan(root: Path, study: StudySpec) -> Plan | None:
    """The plan that is kept with a study. Raises `RunError` naming a damaged file."""
    path = plan_path(root, study)
    if not path.exists():
        return None
    try:
        return _read(path)
    except (OSError, ValueError) as broken:
        raise RunError(
            f"{path}: damaged or cut short ({first_line(broken)}). Restore it, or delete it: then "
            "nothing was planned"
        ) from None


def earlier_plan(root: Path, study: StudySpec) -> Plan | None:
    """What was planned under the same name before the study file changed in what no plan depends
    on (a title, say): a changed file has a folder of its own. Files that are damaged are none."""
    pairs: dict[tuple[str, str, str, str], PairPlan] = {}
    for path in sorted((root / "studies").glob(f"{study.name}-*/{FILE}")):
        try:
            plan = _read(path)
        except (OSError, ValueError):
            continue
        for pair in plan.pairs:
            same = (pair.margin, pair.seeds) == (study.margin, study.num_seeds)
            if (
                same
                and pair.pilot_seeds
                and pair.made > getattr(pairs.get(pair_key(pair)), "made", "")
            ):
                pairs[pair_key(pair)] = pair
    return Plan(pairs=tuple(pairs.values())) if pairs else None


def _read(path: Path) -> Plan:
    return Plan.model_validate(json.loads(path.read_text(encoding="utf-8")))


def keep_plan(root: Path, study: StudySpec, plan: Plan) -> None:
    content = plan.model_dump_json(indent=1, exclude_none=True)
    write_atomically(plan_path(root, study), content.encode())


def pair_key(pair: PairPlan) -> tuple[str, str, str, str]:
    return (pair.model, pair.task, pair.first, pair.second)
