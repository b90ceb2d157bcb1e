"""How long a user looks at nothing: seconds to the first line of each command, and CPU seconds.

    python benchmarks/first_line.py                     three minutes; first_line.json and .md
    python benchmarks/first_line.py compare report      these commands anew, the others as kept

Every call is a process of its own, from its start: Python, imports and all. The first byte on
standard output or standard error counts. Calls of the commands alternate, so that whatever else
the machine does meets all of them; one call of each before them warms the file cache and is not
counted.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "kept"
RUNS, CALLS = 200, 5
TARGET_S = 1.0
RUN = min(path.name for path in (KEPT / "out" / "runs").iterdir())
COMMANDS = {
    "--help": "--help",
    "tasks list": "tasks list",
    "tasks show": "tasks show sample_nli",
    "tasks show, with tokens": "tasks show sample_nli --tokens",
    "check of a task": "check sample_nli",
    "check of a study": "check demo",
    "study, a misspelt name": "study papper",
    "study, a wrong key": "study demo --set train.epoch=1",
    "study --dry-run, 6 configurations": "study demo --dry-run",
    "study --dry-run, 684 configurations": "study paper --dry-run",
    "study": "study short.toml --out new",
    "run, no such file": "run nowhere.toml",
    "ls of 200 runs": "ls --out many",
    "show": f"show out/runs/{RUN}",
    "compare": f"compare out/runs/{RUN} out/runs/{RUN}",
    "report": "report kept.toml --out out",
    "score, no such run": "score nowhere",
    "generate, no such run": "generate nowhere --text x",
}
SHORT = """
name = "short"
[train]
learning_rate = 1e-3
[[models]]
path = "builtin"
[[tasks]]
name = "sample_choice"
train_rows = 8
eval_rows = 4
[[methods]]
name = "FT"
kind = "ft"
"""


def set_up(folder: Path) -> None:
    for name in ("out", "tasks"):
        shutil.copytree(KEPT / name, folder / name)
    shutil.copy(KEPT / "kept.toml", folder)
    (folder / "short.toml").write_text(SHORT, encoding="utf-8")
    sources = sorted((KEPT / "out" / "runs").iterdir())
    for number in range(RUNS):
        source = sources[number % len(sources)]
        shutil.copytree(source, folder / "many" / "runs" / f"{source.name[:-6]}{number:06d}")


def call(arguments: str, folder: Path) -> dict[str, float]:
    """Seconds to the first byte and to the end, and CPU seconds."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "tsugiki", *arguments.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    first = None
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if not os.read(key.fd, 65536):
                    selector.unregister(key.fileobj)
                elif first is None:
                    first = time.perf_counter() - start
    code = process.wait()
    whole = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code in (0, 2, 3), f"{arguments} ended with {code}"
    assert first is not None, f"{arguments} said nothing"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"first_s": first, "whole_s": whole, "cpu_s": cpu}


def page(kept: dict[str, object], rows: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "# Seconds to the first line",
        "",
        f"`python benchmarks/first_line.py`, {kept['date']}, {kept['machine']}, Python "
        f"{kept['python']}; {CALLS} calls each, median [least, most]. Target: the first line "
        f"within {TARGET_S:g} s, and `ls` of {RUNS} runs within {TARGET_S:g} s of CPU.",
        "",
        "| command | first line (s) | whole (s) | CPU (s) |",
        "|---|---|---|---|",
    ]
    for name, calls in rows.items():
        cells = [_told([each[key] for each in calls]) for key in ("first_s", "whole_s", "cpu_s")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    late = [name for name, calls in rows.items() if max(e["first_s"] for e in calls) > TARGET_S]
    said = f"Later than {TARGET_S:g} s: {', '.join(late)}." if late else "None was later."
    return "\n".join([*lines, "", said, ""])


def _told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    target = Path(__file__).with_suffix(".json")
    wanted, rows = sys.argv[1:] or list(COMMANDS), dict[str, list[dict[str, float]]]()
    if len(wanted) < len(COMMANDS):
        before = json.loads(target.read_text(encoding="utf-8"))["commands"]
        rows = {name: entry["calls"] for name, entry in before.items()}
    rows |= {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        set_up(folder)
        for number in range(CALLS + 1):
            for name in wanted:
                measured = call(COMMANDS[name], folder)
                if number:
                    rows[name].append(measured)
                    print(f"{name}: {measured['first_s']:.2f} s", flush=True)
    kept: dict[str, object] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), shared",
        "python": platform.python_version(),
        "calls": CALLS,
        "commands": {name: {"command": COMMANDS[name], "calls": rows[name]} for name in rows},
    }
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(page(kept, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
