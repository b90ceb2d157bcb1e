"""Times the chosen cells of a study again, each alone on the device; their scores stay as they are.

python benchmarks/workbench/measure_again.py STUDY.toml RUNS_ROOT [--set …]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tsugiki.runs.finished import measure_exclusive
from tsugiki.runs.reading import read_record
from tsugiki.runs.store import Run, Store
from tsugiki.study.cells import collect, find_study, parse_study
from tsugiki.toml import override


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("root", type=Path)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    study = parse_study(override(find_study(args.study), args.set), args.study)
    result = collect(study, Store(args.root))
    for cell in result.chosen.values():
        record = result.records[cell.label]
        Run(record.folder).change(exclusive_cost=None)
        measure_exclusive(read_record(record.folder))
        for batch, cost in (read_record(record.folder).outcome.exclusive_cost or {}).items():
            print(
                f"{cell.label} batch {batch}: {cost.step_s_median:.4f} s median, "
                f"{cost.step_s_mean:.4f} s mean, {cost.num_steps} steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
