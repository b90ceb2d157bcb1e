"""What the command line prints of results: scores, reports, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsugiki.study.cells import StudyResult
    from tsugiki.study.compare import Comparison
    from tsugiki.study.words import Language


def print_json(content: Any) -> None:
    print(json.dumps(content, ensure_ascii=False, indent=1))


def print_report(result: StudyResult, out: Path, as_json: bool, lang: Language = "en") -> None:
    from dataclasses import asdict

    from tsugiki.progress import show_tables
    from tsugiki.study.finding import sentence
    from tsugiki.study.report import write_report
    from tsugiki.study.tables import gather

    material = gather(result)
    page, tables = write_report(material, out, lang)
    said = [sentence(one, lang) for one in material.found]
    if as_json:
        print_json({"report": str(page), "findings": said, "tables": [asdict(table) for table in tables]})
        return
    show_tables(tables)
    print("\n".join(said))
    print(f"Report: {page.parent / 'report.ja.html'} · {page.parent / 'report.en.html'}   (Markdown, CSV and LaTeX beside them)")
    folders = [record.folder for cell in result.chosen.values() if (record := result.record(cell)) is not None]
    if folders:
        print(f"Next: tsugiki generate {folders[0]} --text 'PROMPT'   (the prompt's form stands in Table 1)")


def print_scores(record: Any, part: str) -> None:
    evaluation = record.evaluation(part)
    for one in evaluation["scores"]:
        print(f"{part} {one['name']}: {one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}] n={one['n']} ({one['signature']})")
    from tsugiki.score.failures import ENGLISH

    failures = evaluation["failures"]
    print("answers: " + ", ".join(f"{ENGLISH[name]} {count}" for name, count in failures.items()))
    unended = failures.get("no_eos", 0) + failures.get("repetition", 0)
    if unended > sum(failures.values()) / 2:
        print("Most answers did not end: the model has not learned the form of the answer yet. More steps or a higher learning rate may help.")
    print(f"Every answer: {record.folder / f'answers-{part}.jsonl'}")


def print_rules(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Scores of kept answers by rule."""
    from tsugiki.progress import show_tables
    from tsugiki.study.tabular import Table

    if as_json:
        print_json(rows)
        return
    cells = []
    for row in rows:
        bounds = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
        cells.append((row["rule"], row["labels"], row["score"], f"{row['value']:.4f}{bounds}", str(row["n"])))
    signatures = tuple(dict.fromkeys(row["signature"] for row in rows if "|" in row["signature"]))
    header = ("Rule", "Labels", "Score", "Value", "n")
    show_tables([Table(name="rules", title="Kept answers by rule", header=header, rows=tuple(cells), notes=signatures)])


def print_ways(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Three scores from one checkpoint."""
    from tsugiki.progress import show_tables
    from tsugiki.study.tabular import Table

    if as_json:
        print_json(rows)
        return
    cells = []
    for row in rows:
        gain = f"{row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]" if "gain" in row else "-"
        cells.append((row["way"], f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]", gain, f"{row['p']:.3g}" if "p" in row else "-", str(row["n"])))
    header = ("Way", rows[0]["score"], "Against free generation", "McNemar p", "n")
    note = (
        "free: any text; constrained: may only spell a candidate; sum, per_char: largest log-likelihood. "
        "What constrained gains over free was form, not knowledge."
    )
    show_tables([Table(name="ways", title="Three scores from one checkpoint", header=header, rows=tuple(cells), notes=(note,))])


def print_record(record: Any, as_json: bool) -> None:
    """What a run was asked, with what, and what happened."""
    asked = record.config.model_dump(mode="json", exclude_none=True)
    if as_json:
        print_json({"asked": asked, "with_what": record.with_what, "happened": record.happened})
        return
    reason = record.happened.get("reason") if record.status in ("failed", "pruned") else None
    print(f"{record.folder}: {record.status}" + (f" ({reason})" if reason else ""))
    for name, settings in asked.items():
        print(f"  {name:8} " + (", ".join(f"{key} {value}" for key, value in settings.items()) if isinstance(settings, dict) else str(settings)))
    print(f"  device   {record.with_what['device']}; rows {record.with_what['rows']}; weights of sha256 {record.with_what['model_sha256'][:16]}…")
    for part in record.happened.get("evaluations", {}):
        print_scores(record, part)
    following = f"score {record.folder} --part test" if record.evaluation("test") is None else f"compare {record.folder} ANOTHER-RUN"
    print(f"Next: tsugiki {following}")


def print_comparison(found: Comparison, part: str, rows: int, as_json: bool) -> None:
    """Paired difference of two runs, and some of the answers that changed."""
    from dataclasses import asdict

    if as_json:
        print_json(asdict(found))
        return
    print(f"{found.score} on {part}, n = {found.n}: {found.first:.4f} against {found.second:.4f}")
    print(f"difference {found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] (paired bootstrap by group, 95 %)")
    if found.mcnemar is not None:
        test = found.mcnemar
        print(f"right by the first alone {test.only_first}, by the second alone {test.only_second}: p = {test.p:.3g} (McNemar, by group)")
    print(f"{len(found.changed)} answers differ" + (":" if rows and found.changed else ""))
    for one in found.changed[:rows]:
        print(f"  {one['id']}: {one['first']} | {one['second']}   (right: {one['target']})")
