"""What the report says: seeds, the margin, training curves, the landscape, in Japanese and
English; LaTeX that compiles."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import build
from tests.build import TABLES, in_words, study_of
from tsugiki.config.study import StudySpec
from tsugiki.errors import RunError
from tsugiki.report.compare import compare_methods
from tsugiki.report.looks import Look
from tsugiki.report.material import gather
from tsugiki.report.shapes import bars, heat_map, stacked
from tsugiki.report.write import write_report
from tsugiki.runs.reading import read_record
from tsugiki.runs.store import Store
from tsugiki.runs.watch import watch_steps
from tsugiki.score.statistics import paired_difference
from tsugiki.study.cells import StudyResult, collect, parse_study
from tsugiki.study.sweep import run_study

LOOK = Look(name="LoRA", colour="#0072B2")


@pytest.fixture(scope="module")
def wide(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> tuple[StudySpec, StudyResult, Path]:
    """A small study with everything switched on, run once."""
    given = study_of(model_folder, build.save_task(tmp_path_factory.mktemp("task") / "task"))
    lora = {
        "name": "LoRA",
        "kind": "lora",
        "grid": {"targets": ["q+v", "all-linear"], "rank": [2], "learning_rate": [1e-3, 5e-3]},
    }
    full = {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-3]}}
    spec = parse_study(
        {
            **given,
            "methods": [lora, full],
            "seeds": 3,
            "margin": 10,
            "score": {"during": 2, "during_rows": 5},
        },
        "study",
    )
    root = tmp_path_factory.mktemp("wide")
    return spec, run_study(spec, Store(root)), root


def test_the_chosen_cells_are_trained_with_every_seed_and_found_again(
    wide: tuple[StudySpec, StudyResult, Path],
) -> None:
    spec, result, root = wide
    for key, cell in result.chosen.items():
        assert [record.config.train.seed for record in result.seeds(cell)] == [0, 1, 2]
        others = [other for other in result.cells if other.key == key and other is not cell]
        assert all(len(result.seeds(other)) == 0 for other in others), (
            "the others are not scored on test"
        )
    again = collect(spec, Store(root))
    assert {key: len(again.seeds(cell)) for key, cell in again.chosen.items()} == dict.fromkeys(
        result.chosen, 3
    )
    table = next(one for one in in_words(gather(again), "en") if one.name == "scores")
    assert [row[5] for row in table.rows if row[5] != "-"] == ["3", "3"]
    lora = gather(again).standings["tiny", "tiny", "LoRA"]
    assert table.rows[0][2].startswith(f"{lora.score:.3f} ["), (
        "the table and the finding say one number"
    )


def test_with_several_seeds_their_spread_widens_the_interval() -> None:
    random = np.random.default_rng(0)
    examples = random.random(200)
    groups = [str(i) for i in range(200)]
    calm = [list(examples)] * 3
    rough = [list(examples + shift) for shift in (-0.2, 0.0, 0.2)]
    base = [list(examples * 0.5)] * 3
    widths = []
    for rows in (calm, rough):
        found = paired_difference(rows, base, groups)
        assert found.low < found.mean < found.high
        assert found.mean == pytest.approx(float(examples.mean() / 2), abs=1e-9)
        widths.append(found.high - found.low)
    assert widths[1] > 3 * widths[0]
    one, several = (
        paired_difference(calm[:1], base[:1], groups),
        paired_difference(calm, base, groups),
    )
    assert (several.low, several.high) == pytest.approx((one.low, one.high), abs=0.01)


def test_validation_is_looked_at_during_training(wide: tuple[StudySpec, StudyResult, Path]) -> None:
    _, result, _ = wide
    for record in result.records.values():
        seen = record.validations
        assert [one.step for one in seen] == watch_steps(record.outcome.steps, 2)
        assert all(sum(one.scores.failures.values()) == one.scores.main.n == 5 for one in seen)
    assert watch_steps(10, 4) == [2, 4, 6, 8]
    assert watch_steps(2, 5) == [1]
    assert watch_steps(9, 0) == []


def test_the_japanese_page_is_japanese_and_both_hold_every_section(
    wide: tuple[StudySpec, StudyResult, Path],
) -> None:
    _, result, root = wide
    page = write_report(gather(result), root)
    english = (page.parent / "report.en.html").read_text(encoding="utf-8")
    japanese = (page.parent / "report.ja.html").read_text(encoding="utf-8")
    for text, words in (
        (
            english,
            (
                "What it costs",
                "What this does not show",
                "Training curves",
                "How to compare these numbers",
                "is not above the baseline",
                "Equal: the whole interval lies within ±10 points",
            ),
        ),
        (
            japanese,
            (
                "ここからは言えないこと",
                "学習曲線",
                "比較するときの注意",
                "「値がベースライン以下」",
                "±10 ポイント",
                "秒/ステップ: 中央値（平均は",
                "シード 3 個",
            ),
        ),
    ):
        for word in words:
            assert word in text, word
    assert english.count("<svg") == japanese.count("<svg") >= 8
    # No English sentence in the Japanese page: no note holds three English words in a row (names,
    # signatures and numbers apart).
    for note in re.findall(r"<li>(.*?)</li>", japanese):
        plain = re.sub(r"[a-z_]+\|\S+|sha256 \S+|\(.*?\)|: [A-Z].*?\d{4}.*", "", note)
        assert not re.search(r"\b[a-z]{3,} [a-z]{3,} [a-z]{3,}\b", plain), note
    assert "Made by" not in (page.parent / "report.ja.md").read_text(encoding="utf-8")


def test_texts_that_may_not_be_passed_on_stay_out(
    wide: tuple[StudySpec, StudyResult, Path],
) -> None:
    spec, result, _ = wide
    bare = StudyResult(
        study=spec.model_copy(update={"answers_shown": 0}),
        cells=result.cells,
        records=result.records,
        chosen=result.chosen,
        repeats=result.repeats,
    )
    names = [table.name for table in in_words(gather(bare), "en")]
    assert names == [*TABLES, "data", "provenance"]


def test_what_models_wrote_is_never_translated(wide: tuple[StudySpec, StudyResult, Path]) -> None:
    _, result, _ = wide
    english, japanese = (
        next(table for table in in_words(gather(result), language) if table.name == "answers-1")
        for language in ("en", "ja")
    )
    written = [row[2] for row in english.rows if row[1] not in ("Input", "reference")]
    assert len(written) >= 3
    assert written == [row[2] for row in japanese.rows if row[1] not in ("入力", "正解")]


def test_runs_on_other_examples_are_not_paired(
    wide: tuple[StudySpec, StudyResult, Path], tmp_path: Path
) -> None:
    _, result, _ = wide
    first, second = (result.seeds(cell) for cell in result.chosen.values())
    assert compare_methods(first, second, "test").seeds == 3
    shutil.copytree(second[0].folder, tmp_path / "other")
    path = tmp_path / "other" / second[0].scored("test").file
    path.write_text(
        "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8"
    )
    with pytest.raises(RunError, match="scored on different examples"):
        compare_methods(first[:1], [read_record(tmp_path / "other")], "test")


def test_figures_hold_what_they_are_given() -> None:
    drawn = heat_map(
        ["q+v", "all"],
        ["1e-4", "1e-3"],
        {(0, 0): 0.1, (0, 1): 0.9, (1, 0): None},
        [(0, 1)],
        "heat <map>",
        (0.1, 0.9),
    )
    assert drawn.count("<rect") == 3 + 20, "the squares, and the bar of shades"
    assert drawn.count('stroke="#D55E00"') == 1
    assert "0.900" in drawn
    assert "–" in drawn
    assert 'aria-label="heat &lt;map&gt;"' in drawn
    assert bars({"a": 2.0, "b": 0.0}, dict.fromkeys("ab", LOOK), "t").count("<rect") == 2
    columns = {"4": {"right": 3, "empty": 1}, "8": {"right": 4}}
    shares = stacked(columns, {"right": "正解", "empty": "空", "outside": "候補外"}, "t")
    assert "4: 正解 75%" in shares
    assert "候補外" not in shares
    empty = bars({}, {}, "t") + heat_map([], [], {}, [], "t", (0, 1)) + stacked({}, {}, "t")
    assert "nan" not in empty


@pytest.mark.slow
def test_latex_compiles_where_there_is_a_latex(
    wide: tuple[StudySpec, StudyResult, Path], tmp_path: Path
) -> None:
    _, result, root = wide
    page = write_report(gather(result), root)
    tables = in_words(gather(result))
    if shutil.which("lualatex") is None:
        pytest.skip("no lualatex here")
    body = "\n\n".join(
        (page.parent / f"{table.name}.tex").read_text(encoding="utf-8") for table in tables
    )
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        + body
        + "\\end{document}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["lualatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1500:]


def test_the_tables_are_json_too(
    wide: tuple[StudySpec, StudyResult, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from tsugiki.cli.printing import print_report

    _, result, root = wide
    assert not print_report(result, root, "tsugiki study again", True), "nine rows teach nothing"
    printed = json.loads(capsys.readouterr().out)
    rows = [row for row in printed["results"] if row["metric"] == "accuracy"]
    assert {row["seed"] for row in rows if row["part"] == "test"} >= {0, 1, 2, "mean"}
    assert all(isinstance(row["value"], (int, float)) for row in printed["results"])
    assert [row["first"] for row in printed["comparison"]] == ["LoRA"]
    assert len(printed["findings"]) == 1
    assert printed["verdicts"][0]["verdict"] is None
