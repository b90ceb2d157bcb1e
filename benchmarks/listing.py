"""What reading records costs: CPU seconds of `tsugiki ls` on 2,000 runs, and of `tsugiki report`.

    python benchmarks/listing.py      half a minute; prints a line each

The runs are copies of those that the tests keep. CPU seconds of the whole process, the start of
Python included; median of so many calls, and their extremes.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = Path(__file__).parents[1] / "tests" / "kept"
RUNS, CALLS = 2000, 5


def many_runs(root: Path) -> None:
    """So many run folders, copied from the kept ones under names of their own."""
    folders = sorted((KEPT / "out" / "runs").iterdir())
    for number in range(RUNS):
        source = folders[number % len(folders)]
        shutil.copytree(source, root / "runs" / f"{source.name[:-6]}{number:06d}")


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """User and system time of one call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tsugiki", *arguments]
    code = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode
    assert code in (0, 3), f"{arguments} ended with {code}"  # 3: a report that lacks something
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(name: str, seconds: list[float]) -> str:
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"{name}: {middle:.2f} s of CPU [{low:.2f}, {high:.2f}], {len(seconds)} calls"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("out", "tasks"):
            shutil.copytree(KEPT / name, folder / name)
        shutil.copy(KEPT / "kept.toml", folder)
        many_runs(folder / "many")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
        for name, arguments in (
            (f"ls of {RUNS:,} runs", ["ls", "--out", "many"]),
            ("ls of 29 runs", ["ls", "--out", "out"]),
            ("report of 29 runs", ["report", "kept.toml", "--out", "out"]),
        ):
            print(told(name, [cpu_seconds(arguments, folder) for _ in range(CALLS)]))


if __name__ == "__main__":
    main()
