"""What a searched grid says (the paper's section 3.5): how much a method depends on its hyper-parameters, and where a better cell may lie.

No torch here.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.config import Range
from tsugiki.data.tasks import Task
from tsugiki.score.metrics import chance_baseline, majority_baseline
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.study.notes import chosen_text, score_text
from tsugiki.study.store import RunRecord
from tsugiki.study.tabular import Table
from tsugiki.study.words import Language, pick


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """The cells of one (model, task, method) that were run. `dead` did not learn: they failed, or their interval reaches down to
    what needs no model (majority, chance)."""

    key: Key
    best: Cell
    record: RunRecord
    values: tuple[float, ...]
    near: int
    dead: int

    @property
    def num(self) -> int:
        return len(self.values)

    @property
    def main(self) -> Mapping[str, Any]:
        evaluation = self.record.evaluation("validation")
        assert evaluation is not None, "a chosen cell was scored"
        main: Mapping[str, Any] = evaluation["main"]
        return main

    @property
    def fall(self) -> float:
        """How far the median cell lies below the best: what a user loses who takes some cell of the grid."""
        return float(self.main["value"]) - statistics.median(self.values)


def landscapes(result: StudyResult, tasks: Mapping[str, Task]) -> list[Landscape]:
    found = []
    for key, best in result.chosen.items():
        if best.config.adapter is not None or best.method.search.prune:
            continue  # nothing was searched, or what was pruned would be missing from the count
        records = [record for cell in result.cells if cell.key == key and (record := result.record(cell)) is not None]
        top, floor = result.record(best), _needs_no_model(tasks[key[1]])
        if top is None or (evaluation := top.evaluation("validation")) is None:
            continue
        ran = [one for one in records if one.status in ("done", "failed")]
        mains = [(one.evaluation("validation") or {}).get("main") if one.status == "done" else None for one in ran]
        found.append(
            Landscape(
                key=key,
                best=best,
                record=top,
                values=tuple(main["value"] if main else 0.0 for main in mains),
                near=sum(main is not None and main["value"] >= evaluation["main"]["low"] for main in mains),
                dead=sum(main is None or (floor is not None and main["low"] <= floor) for main in mains),
            )
        )
    return found


def _needs_no_model(task: Task) -> float | None:
    """The score on validation of the most frequent class, or of chance; None for free text."""
    rows = task.examples["validation"]
    if task.spec.kind == "classification":
        return majority_baseline([one.target for one in task.examples["train"]], [one.target for one in rows])
    return chance_baseline([one.candidates for one in rows]) if task.spec.kind == "choice" else None


def landscape_table(result: StudyResult, tasks: Mapping[str, Task], language: Language) -> Table:
    found = landscapes(result, tasks)
    rows = [
        (
            " · ".join(one.key),
            str(one.num),
            chosen_text(one.best),
            score_text(one.record.evaluation("validation") or {}),
            f"{one.near} ({one.near / one.num:.0%})",
            f"{one.dead} ({one.dead / one.num:.0%})",
            f"{statistics.median(one.values):.3f}",
            f"{one.fall:.3f}",
        )
        for one in found
    ]
    for key in dict.fromkeys(cell.key for cell in result.cells):
        failed = sum(cell.key == key and (record := result.record(cell)) is not None and record.status == "failed" for cell in result.cells)
        if key not in result.chosen and failed:
            rows.append((" · ".join(key), str(failed), "no cell learned", "-", "-", f"{failed} (100%)", "-", "-"))
    return Table(
        name="landscape",
        title="ハイパーパラメータへの依存（検証データ） / How much depends on the hyper-parameters, by validation",
        header=("Model · task · method", "Cells", "Best setting", "Validation", "Within its interval", "Did not learn", "Median cell", "Best - median"),
        rows=tuple(rows),
        notes=(_legend(language), *landscape_notes(found, language), *edges(result, language)),
    )


def _legend(language: Language) -> str:
    return pick(
        language,
        "「学習できず」: 発散・停止した設定と、95 % 区間の下端が最頻クラス（選択問題ではチャンスレベル）以下の設定。それらの評価値は 0 "
        "として中央値に含めます（発散・停止のみ）。「最良の区間内」: 最良の設定の 95 % 区間の下端以上。",
        "Did not learn: cells that diverged or were stopped, and cells whose 95 % interval reaches down to the most frequent class (chance, where "
        "candidates differ by row); those without a score count as 0 in the median. Within its interval: at least the low end of the best cell's 95 % "
        "interval.",
    )


def landscape_notes(found: Sequence[Landscape], language: Language) -> list[str]:
    """LoRA against FT on one base, the larger base against the smaller under one method, and LoRA's best rate over FT's."""
    notes = []
    for one in found:
        for other in found:
            if one.key[:2] == other.key[:2] and one.best.method.kind == "lora" and other.best.method.kind == "full":
                notes += [_more_sensitive(one, other, language), _ratio(one, other, language)]
            larger = one.record.happened["total"] > other.record.happened["total"]
            if one.key[1:] == other.key[1:] and larger and one.record.with_what["model_sha256"] != other.record.with_what["model_sha256"]:
                notes.append(_more_sensitive(one, other, language))
    return notes


def _more_sensitive(one: Landscape, other: Landscape, language: Language) -> str:
    first, second = " ".join(one.key), " ".join(other.key)
    return pick(
        language,
        f"{first} と {second}: 学習できなかった設定は {one.dead / one.num:.0%} と {other.dead / other.num:.0%}、最良と中央値の差は {one.fall:.3f} と "
        f"{other.fall:.3f}（探索した設定は {one.num} 個と {other.num} 個で、同じ範囲とは限りません）。",
        f"{first} against {second}: {one.dead / one.num:.0%} and {other.dead / other.num:.0%} of the cells did not learn; the median cell lies "
        f"{one.fall:.3f} and {other.fall:.3f} below the best ({one.num} and {other.num} cells, not always over the same ranges).",
    )


def _ratio(one: Landscape, other: Landscape, language: Language) -> str:
    lora, full = one.best.config.train.learning_rate, other.best.config.train.learning_rate
    place, names = " ".join(one.key[:2]), f"{one.key[2]} / {other.key[2]}"
    return pick(
        language,
        f"{place}: 最良の学習率は LoRA が FT の {lora / full:.3g} 倍（{names}: {lora:g} と {full:g}）。",
        f"{place}: LoRA's best learning rate is {lora / full:.3g} times FT's ({names}: {lora:g} against {full:g}).",
    )


def settings_table(result: StudyResult, language: Language) -> Table:
    """Each searched value: the best and the mean over all cells that have it."""
    rows = []
    for key, best in result.chosen.items():
        cells = [cell for cell in result.cells if cell.key == key and not cell.method.search.prune]
        for name, tried in (cells[0].method.grid if cells else {}).items():
            for value in tried if not isinstance(tried, Range) and len(tried) > 1 else ():
                records = [record for cell in cells if cell.settings[name] == value and (record := result.record(cell)) is not None]
                scores = [0.0 if (score := one.main_score("validation")) is None else score for one in records if one.status in ("done", "failed")]
                if scores:
                    mark = " ★" if best.settings[name] == value else ""
                    rows.append(
                        (
                            " · ".join(key),
                            name,
                            f"{value:g}{mark}" if isinstance(value, float) else f"{value}{mark}",
                            f"{max(scores):.3f}",
                            f"{statistics.fmean(scores):.3f}",
                            str(len(scores)),
                        )
                    )
    return Table(
        name="settings",
        title="値ごとの評価値（検証データ） / Each searched value, by validation",
        header=("Model · task · method", "Setting", "Value", "Best", "Mean", "Cells"),
        rows=tuple(rows),
        notes=(
            pick(
                language,
                "★ は選ばれた設定の値。発散・停止した設定は 0 として数えます。",
                "★: the chosen cell's value. Cells that diverged or were stopped count as 0.",
            ),
        ),
    )


def edges(result: StudyResult, language: Language) -> list[str]:
    """Chosen cells that lie on the edge of what was tried, and a wider grid for each: a better cell may lie outside."""
    notes = []
    for cell in result.chosen.values():
        for name, tried in cell.method.grid.items():
            if isinstance(tried, Range):
                continue
            wider = _wider(sorted({value for value in tried if isinstance(value, (int, float))}), cell.settings[name])
            if wider:
                where = pick(language, "最小" if wider[0] < cell.settings[name] else "最大", "lowest" if wider[0] < cell.settings[name] else "highest")
                offer = ", ".join(f"{value:g}" for value in wider)
                notes.append(
                    pick(
                        language,
                        f"最良の設定が探索範囲の端にあります: {' '.join(cell.key)} の {name} {cell.settings[name]:g}（試した中の{where}）。範囲を "
                        f"{offer} まで広げると、さらに良い設定があるかもしれません。",
                        f"Best cell on the edge of the grid: {' '.join(cell.key)}, {name} {cell.settings[name]:g} (the {where} tried). A better one may "
                        f"lie outside: add {offer}.",
                    )
                )
    return notes


def _wider(tried: Sequence[float], chosen: Any) -> list[float]:
    """Two more values beyond the edge that the choice lies on: the last ratio again, the last distance for whole numbers below 8."""
    if len(tried) < 2 or chosen not in (tried[0], tried[-1]):
        return []
    down = chosen == tried[0]
    edge, inner = (tried[0], tried[1]) if down else (tried[-1], tried[-2])
    if not edge or not inner:
        return []  # nought has no ratio: what lies beyond is not told by the grid
    if all(isinstance(value, int) or float(value).is_integer() for value in tried):
        step = edge - inner
        values = [edge * 2, edge * 4] if edge >= 8 and not down else [edge + step, edge + 2 * step]
        return [value for value in values if value >= 1]
    return [float(f"{edge * (edge / inner) ** power:.2g}") for power in (1, 2)]


def shared_note(result: StudyResult, language: Language) -> list[str]:
    """How the cells were trained: many in one pass, shorter ones from a longer run's checkpoints."""
    records = [record for cell in result.cells if (record := result.record(cell)) is not None]
    shared = sum("shared" in record.happened for record in records)
    notes = []
    if shared:
        notes.append(
            pick(
                language,
                f"{len(records)} 設定のうち {shared} は、"
                f"エポック数だけが大きい別の設定の途中のチェックポイントから続けたもの（学習率が途中まで同じになるスケジュールの場合に限る。"
                f"結果は初めから学習した場合と同じ）。",
                f"{shared} of {len(records)} cells went on from a checkpoint of a cell that differs in its epochs alone (only where the schedule gives "
                "both the same rates up to there; the result is that of training from the start).",
            )
        )
    lanes = Counter(record.happened.get("lanes", 1) for record in records if record.config.lora)
    if max(lanes, default=1) > 1:
        text = ", ".join(f"{count} × {number}" for number, count in sorted(lanes.items()))
        notes.append(
            pick(
                language,
                f"LoRA の設定は、1 つのベースモデルの上でまとめて学習しました（設定の数 × 同時に学習したアダプタの数: {text}）。",
                f"LoRA cells trained together over one base (cells × adapters in one pass: {text}).",
            )
        )
    return notes
