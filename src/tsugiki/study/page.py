"""The report as one self-contained HTML page, in Japanese or English: the answer first, then the evidence."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tsugiki.study.cells import Cell, StudyResult, task_label
from tsugiki.study.finding import Language, findings, sentence
from tsugiki.study.plots import Point, axis_over, chart
from tsugiki.study.store import RunRecord
from tsugiki.study.tables import Table

TEMPLATE = Path(__file__).parent.parent / "presets" / "report" / "page.html.j2"
CURVE_POINTS = 80
# What the Japanese page calls the column heads.
JAPANESE = {
    "Task": "タスク",
    "Train": "学習",
    "Validation": "検証",
    "Test": "テスト",
    "Split / format": "分割 / 形式",
    "Input format": "入力の形式",
    "Method": "手法",
    "Trainable (M)": "学習対象パラメータ (M)",
    "Weights file (MiB)": "重みファイル (MiB)",
    "Peak memory (MiB)": "ピークメモリ (MiB)",
    "s/step @8": "秒/ステップ (バッチ 8)",
    "s/step (batch)": "秒/ステップ (設定のバッチ)",
    "tokens/s": "トークン/秒",
    "s/answer": "秒/解答",
    "Candidate rate": "候補内解答率",
    "n": "件数",
    "Model · task": "モデル · タスク",
    "Difference": "差",
    "Main score": "主な評価値",
    "Reading": "判定",
    "Model · task · method": "モデル · タスク · 手法",
    "Setting": "設定",
    "Chosen": "選択",
    "Example": "例",
    "Text": "テキスト",
    "right": "正解",
    "right after NFKC and strip": "正規化すれば正解",
    "another candidate": "別の候補",
    "contains a candidate": "候補を含む",
    "outside the candidates": "候補外",
    "empty": "空",
    "repeats itself": "繰り返し",
    "did not end": "終わらない",
    "input was cut": "入力を切り詰め",
    "undecided": "判定できず",
    "Input": "入力",
}
WORDS: dict[str, dict[Language, str]] = {
    "finding": {"ja": "結論", "en": "Finding"},
    "none": {"ja": "比較できる手法の組がありません。", "en": "There is no pair of methods to compare."},
    "cost": {"ja": "評価値とコスト", "en": "Quality against cost"},
    "landscape": {"ja": "学習率による違い", "en": "The hyper-parameter landscape"},
    "curves": {"ja": "学習曲線（選ばれた設定）", "en": "Loss curves of the chosen cells"},
    "parameters": {"ja": "学習対象パラメータ (M)", "en": "trained parameters (M)"},
    "rate": {"ja": "学習率", "en": "learning rate"},
    "step": {"ja": "ステップ", "en": "step"},
    "loss": {"ja": "損失", "en": "loss"},
    "test": {"ja": "テスト", "en": "test"},
    "validation": {"ja": "検証", "en": "validation"},
    "bars": {"ja": "縦棒は 95 % 区間、輪で囲んだ点は選ばれた設定。", "en": "Bars: 95 % intervals; ringed: the chosen cell."},
}


def render_page(result: StudyResult, tables: Sequence[Table], language: Language) -> str:
    """The page as text. Raises nothing for missing cells: what was not run is not drawn."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    said = [sentence(one, language) for one in findings(result)]
    by_name = {table.name: _localised(table, language) for table in tables}
    answers = [by_name[name] for name in by_name if name.startswith("table") and name[5:].isdigit() and int(name[5:]) > 3]
    words = {key: value[language] for key, value in WORDS.items()}
    figures = {"cost": _cost_figures(result, words), "landscape": _landscape_figures(result, words), "curves": _curve_figures(result, words)}
    return environment.get_template(TEMPLATE.name).render(
        language=language,
        title=_half(result.study.title or result.study.name, language),
        words=words,
        findings=said,
        tables=by_name,
        answers=answers,
        figures=figures,
    )


def _half(text: str, language: Language) -> str:
    """The Japanese or the English half of `日本語 / English`."""
    first, slash, second = text.partition(" / ")
    return (first if language == "ja" else second) if slash else text


def _localised(table: Table, language: Language) -> dict[str, Any]:
    def word(text: str) -> str:
        return JAPANESE.get(text, text) if language == "ja" else text

    title = _half(table.title, language)
    rows = [[word(_half(cell, language) if cell == "正解 / reference" else cell) for cell in row] for row in table.rows]
    numeric = {"n", "Train", "Test", "Validation", "Trainable (M)"} | {name for name in table.header if "/" in name or "rate" in name.lower()}
    return {
        "name": table.name,
        "title": title,
        "header": [word(one) for one in table.header],
        "rows": _marked(rows) if table.header[0] == "Example" else [[escape(cell) for cell in row] for row in rows],
        "numeric": [name in numeric for name in table.header],
        "notes": table.notes,
    }


def _marked(rows: list[list[str]]) -> list[list[str]]:
    """Answer rows with what is not in the reference marked."""
    reference = ""
    marked = []
    for place, name, text in rows:
        if name in ("正解", "reference"):
            reference = text
        answer = name not in ("正解", "reference", "入力", "Input")
        marked.append([escape(place), escape(name), _difference(reference, text) if answer else escape(text)])
    return marked


def _difference(reference: str, text: str) -> str:
    parts = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, reference, text, autojunk=False).get_opcodes():
        piece = escape(text[start:stop])
        if piece:
            parts.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return "".join(parts)


def _by_task(result: StudyResult, chosen_only: bool) -> dict[str, list[tuple[Cell, RunRecord]]]:
    found: dict[str, list[tuple[Cell, RunRecord]]] = {}
    for cell in result.chosen.values() if chosen_only else result.cells:
        record = result.record(cell)
        if record is not None and record.status == "done":
            found.setdefault(task_label(cell.task), []).append((cell, record))
    return found


def _score_point(x: float, evaluation: Any, strong: bool = False) -> Point:
    main = evaluation["main"]
    return Point(x=x, y=main["value"], low=main["low"], high=main["high"], strong=strong)


def _cost_figures(result: StudyResult, words: dict[str, str]) -> list[tuple[str, str]]:
    figures = []
    for task, pairs in _by_task(result, chosen_only=True).items():
        series: dict[str, list[Point]] = {}
        for cell, record in pairs:
            if (evaluation := record.evaluation("test")) is not None:
                series.setdefault(f"{cell.model.label}-{cell.method.name}", []).append(_score_point(record.happened["trainable"] / 1e6, evaluation))
        figures += _figure(task, series, words["parameters"], f"{words['test']}: {task}", log=True)
    return figures


def _landscape_figures(result: StudyResult, words: dict[str, str]) -> list[tuple[str, str]]:
    figures = []
    for task, pairs in _by_task(result, chosen_only=False).items():
        series: dict[str, list[Point]] = {}
        for cell, record in pairs:
            extra = [f"{name} {value}" for name, value in cell.settings.items() if name not in ("learning_rate", "alpha")]
            name = " · ".join([f"{cell.model.label}-{cell.method.name}", *extra])
            strong = result.chosen.get(cell.key) is cell
            evaluation = record.evaluation("validation")
            if evaluation is not None:
                series.setdefault(name, []).append(_score_point(cell.config.train.learning_rate, evaluation, strong))
        figures += _figure(task, series, words["rate"], f"{words['validation']}: {task}", log=True)
    return figures


def _curve_figures(result: StudyResult, words: dict[str, str]) -> list[tuple[str, str]]:
    figures = []
    for task, pairs in _by_task(result, chosen_only=True).items():
        series = {f"{cell.model.label}-{cell.method.name}": _smoothed(record) for cell, record in pairs}
        figures += _figure(task, {name: points for name, points in series.items() if points}, words["step"], f"{words['loss']}: {task}", lines=True)
    return figures


def _smoothed(record: RunRecord) -> list[Point]:
    """Mean loss over at most `CURVE_POINTS` equal stretches of the training."""
    path = record.folder / "history.json"
    losses = json.loads(path.read_text(encoding="utf-8"))["loss"] if path.exists() else []
    width = max(1, math.ceil(len(losses) / CURVE_POINTS))
    return [Point(x=start + width / 2, y=sum(part) / len(part)) for start in range(0, len(losses), width) if (part := losses[start : start + width])]


def _figure(task: str, series: dict[str, list[Point]], x_label: str, y_label: str, *, log: bool = False, lines: bool = False) -> list[tuple[str, str]]:
    """[(title, SVG)], or nothing where there is nothing to draw."""
    points = [point for column in series.values() for point in column]
    if not points:
        return []
    x = axis_over([point.x for point in points], x_label, log=log)
    bounds = [value for point in points for value in (point.low, point.y, point.high) if value is not None]
    return [(task, chart(series, x, axis_over(bounds, y_label), y_label, lines=lines))]
