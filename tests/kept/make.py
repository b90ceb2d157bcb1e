"""Makes the kept runs that tests of the report read: a real study, trained on the built-in model
over two small made-up tasks.

    python -m tests.kept.make runs      trains everything anew (a few minutes), drops the weights
    python -m tests.kept.make pages     writes pages, tables and the list of runs from what is kept

Runs and pages are committed: a report made from these runs must not change by a byte, unless on
purpose.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
STUDY, ROOT, PAGES = Path("kept.toml"), Path("out"), Path("pages")
THINGS = (
    "りんご",
    "みかん",
    "傘",
    "自転車",
    "ねこ",
    "いぬ",
    "本",
    "時計",
    "花",
    "電車",
    "机",
    "帽子",
)
PEOPLE = ("太郎", "花子", "先生", "母", "父", "友だち", "店員", "祖母")


def rows(part: str, count: int) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Sentences of likes and dislikes, and of things that were bought last."""
    start = {"train": 0, "validation": 1000, "test": 2000}[part]
    for number in range(start, start + count):
        thing, other, who = (
            THINGS[number * 7 % 12],
            THINGS[(number * 5 + 3) % 12],
            PEOPLE[number * 3 % 8],
        )
        # One in seven says the other.
        likes = (number * 11 % 5 < 2 + number % 2) != (number % 7 == 3)
        said = (
            f"{who}は{thing}が{'好き' if number * 11 % 5 < 2 + number % 2 else '嫌い'}だ（"
            f"{number}番）。"
        )
        bought = {
            "text": f"{who}は{number}番の店で{other}を見て、{thing}を買った。",
            "summary": f"{who}、{thing}を買う",
        }
        yield {"text": said, "label": "はい" if likes else "いいえ"}, bought


def make_tasks() -> None:
    for part, count in (("train", 96), ("validation", 24), ("test", 40)):
        pairs = list(rows(part, count))
        for place, name in enumerate(("likes", "bought")):
            lines = "".join(json.dumps(pair[place], ensure_ascii=False) + "\n" for pair in pairs)
            (HERE / "tasks" / f"{name}-{part}.jsonl").write_text(lines, encoding="utf-8")


def make_runs() -> None:
    """Trains the study (its imported adapter is a run of its own, exported), then drops what a
    report does not read."""
    from tsugiki.cli.commands import main

    def tsugiki(*arguments: str) -> None:
        sys.argv = ["tsugiki", *arguments]
        with contextlib.suppress(SystemExit):
            main()

    make_tasks()
    shutil.rmtree(ROOT, ignore_errors=True)
    for left_over in (Path("adapter"), Path("first")):
        shutil.rmtree(left_over, ignore_errors=True)
    tsugiki("run", "first.toml", "--out", "first")
    tsugiki("export", str(next(Path("first/runs").iterdir())), "--to", "adapter")
    tsugiki("study", str(STUDY), "--out", str(ROOT))
    for pattern in ("locks", "studies", "runs/*/weights", "runs/*/adapter", "runs/*/checkpoint"):
        for path in ROOT.glob(pattern):
            shutil.rmtree(path)
    shutil.rmtree("first")
    shutil.rmtree("adapter")


def pages(root: Path = ROOT) -> dict[str, bytes]:
    """Every file of the report and the list of runs, by name; the current folder must be this one
    or a copy."""
    from tsugiki.cli.commands import main
    from tsugiki.study.cells import find_study, parse_study
    from tsugiki.study.missing import study_folder

    heard = io.StringIO()
    for arguments in (
        ["report", str(STUDY), "--out", str(root), "--paper"],
        ["ls", "--out", str(root), "--json"],
    ):
        sys.argv, heard = ["tsugiki", *arguments], io.StringIO()
        with contextlib.redirect_stdout(heard), contextlib.suppress(SystemExit):
            main()
    folder = study_folder(root, parse_study(find_study(str(STUDY)), str(STUDY)))
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "missing.json" and path.suffix != ".pdf"
    }
    return {**found, "ls.json": heard.getvalue().encode()}


def main_() -> None:
    os.chdir(HERE)
    if sys.argv[1:] == ["runs"]:
        make_runs()
    elif sys.argv[1:] == ["pages"]:
        shutil.rmtree(PAGES, ignore_errors=True)
        PAGES.mkdir()
        for name, content in pages().items():
            (PAGES / name).parent.mkdir(exist_ok=True)
            (PAGES / name).write_bytes(content)
        shutil.rmtree(ROOT / "studies")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main_()
