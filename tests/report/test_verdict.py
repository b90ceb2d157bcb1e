"""What may be said of a comparison: each rule with the case that broke it, in every medium. Runs
are made up, so that answers are known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.build import in_words
from tests.build_runs import COST, keep, part_right, save_made, study_of
from tsugiki.cli.printing import print_report
from tsugiki.config.study import StudySpec
from tsugiki.report.compare import Comparison
from tsugiki.report.finding import (
    DETECT,
    EQUAL,
    decimals_of,
    examples_needed,
    verdict_of,
)
from tsugiki.report.landscape import _ranks, _rate_lies_inside, rank_correlation
from tsugiki.report.material import Material, gather
from tsugiki.report.write import write_report
from tsugiki.runs.store import Run, Store
from tsugiki.score.statistics import mean_over_seeds, paired_difference, student_t
from tsugiki.study.cells import collect, expand, with_seed
from tsugiki.study.missing import keep_missing, read_missing

N = 300


def made(
    root: Path,
    tested: dict[str, Sequence[float]],
    rates: dict[str, Sequence[float]] | None = None,
    **changes: object,
) -> tuple[StudySpec, Store]:
    """A study whose methods score these shares of test, one for each seed (`nan`: that seed
    diverged); every cell .7 of validation."""
    task = save_made(root / "task", N)
    spec = study_of(
        task,
        rates or {name: [1e-3] for name in tested},
        seeds=max(map(len, tested.values())),
        **changes,
    )
    store = Store(root / "out")
    for cell in expand(spec):
        for number, share in enumerate(tested.get(cell.method.name, [])):
            config = with_seed(spec, cell.config, number)
            if math.isnan(share):
                keep(
                    store,
                    config,
                    {},
                    reason="FT: the loss is nan at step 3: training diverged. Lower the learning "
                    "rate (0.001)",
                )
            else:
                keep(
                    store,
                    config,
                    {
                        "validation": part_right(N, 0.7),
                        "test": part_right(
                            N, share, shift=7 * number + 40 * (cell.method.name == "FT")
                        ),
                    },
                )
    return spec, store


def media(
    spec: StudySpec, store: Store, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, str], bool]:
    """Everything that a study prints and writes, by medium; and whether it says that it is
    whole."""
    result = collect(spec, store)
    whole = print_report(result, store.root, "tsugiki study made.toml", False)
    text = {"terminal": capsys.readouterr().out}
    print_report(result, store.root, "tsugiki study made.toml", True)
    text["json"] = capsys.readouterr().out
    page = write_report(gather(result), store.root)
    text |= {
        name: (page.parent / name).read_text(encoding="utf-8")
        for name in ("report.md", "report.en.html", "pairs.tex")
    }
    return text, whole


def material(spec: StudySpec, store: Store) -> Material:
    return gather(collect(spec, store))


def test_two_methods_at_the_floor_have_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They had been “equal within ±2 points (0.000 / 0.000)”."""
    spec, store = made(tmp_path, {"LoRA": [0.0], "FT": [0.0]})
    text, whole = media(spec, store, capsys)
    assert not whole
    for medium, said in text.items():
        assert (
            "LoRA is not above the baseline in this run (0.000; the majority class 0.333; one "
            "learning rate tried)" in said
        ), medium
        assert "no verdict between LoRA and FT" in said, medium
        assert (
            "Nothing follows about FT or LoRA" in said or "Nothing follows about LoRA or FT" in said
        ), medium
        assert "are equal" not in said, medium
    assert json.loads(text["json"])["verdicts"][0] == {
        "model": "m", "task": "made", "verdict": None, "margin": 0.02,
        "standing": {"LoRA": "no better", "FT": "no better"},
    }  # fmt: skip


def test_exactly_chance_against_a_method_below_it_is_no_victory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It had been “LoRA is better than FT”, at chance."""
    text, whole = media(*made(tmp_path, {"LoRA": [1 / 3], "FT": [0.1]}), capsys)
    assert not whole
    for medium, said in text.items():
        assert (
            "LoRA is not above the baseline in this run (0.333; the majority class 0.333; one "
            "learning rate tried)" in said
        ), medium
        assert "better than" not in said, medium


def test_one_method_that_cannot_be_told_from_the_floor_is_not_compared(tmp_path: Path) -> None:
    (found,) = material(*made(tmp_path, {"LoRA": [0.75], "FT": [0.36]})).findings
    assert found.verdict is None
    assert (found.first.kind, found.second.kind) == ("learned", "no better")
    (said,) = material(*made(tmp_path, {"LoRA": [0.75], "FT": [0.36]})).statements("en")
    assert (
        "FT shows no significant difference to the majority class in this run (0.360; the "
        "majority class 0.333; difference +0.027 [" in said
    )
    assert said.endswith("LoRA: 0.750, above the majority class (0.333). Nothing follows about FT.")
    assert (
        "ベースライン以下"
        not in material(*made(tmp_path, {"LoRA": [0.75], "FT": [0.36]})).statements("ja")[0]
    ), "it may have learned a little"


def test_a_diverged_method_is_a_result_in_every_medium_and_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There had been silence: the pair was left out."""
    text, whole = media(*made(tmp_path, {"LoRA": [0.75], "FT": [math.nan]}), capsys)
    assert not whole
    for medium, said in text.items():
        assert (
            "FT has no result: its only configuration failed (FT: the loss is nan at step 3: "
            "training diverged" in said
        ), medium
    assert "| made | m-FT | no result: FT: the loss is nan" in text["report.md"]
    assert text["terminal"].splitlines()[-1].startswith("Not whole: m · made: FT has no result")
    assert (
        text["terminal"]
        .splitlines()[-1]
        .endswith(
            "Other settings may help (learning rates, epochs, rows); finished runs are kept by: "
            "tsugiki study made.toml"
        )
    )


def test_a_seed_that_failed_is_said_and_no_mean_is_given_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, whole = media(*made(tmp_path, {"LoRA": [0.75, 0.74], "FT": [0.8, math.nan]}), capsys)
    assert not whole
    for medium, said in text.items():
        assert "1 of 2 seeds of FT failed (seed 2: FT: the loss is nan" in said, medium
        assert "no mean over the rest (0.800)" in said, medium
    assert "| made | m-FT | 0.800 (1 of 2 seeds failed) |" in text["report.md"]
    assert "| made | m-LoRA | 0.745 [" in text["report.md"].replace("*", "")


@pytest.mark.parametrize(
    ("seeds", "english", "japanese"),
    [
        (
            1,
            "in this run LoRA did better than FT by 40.0 points (accuracy 90.0 % against 50.0 %; ",
            "この実行（シード 1 個）では、LoRA の正解率は FT より 40.0 ポイント高い値です（",
        ),
        (
            2,
            "over two seeds (which do not show how far runs vary) LoRA scored 40.0 points higher",
            "シード 2 個の平均では（2 個では実行ごとのばらつきは分かりません）、LoRA の正解率は",
        ),
        (3, "LoRA is better than FT by 40.0 points", "LoRA の正解率は FT より 40.0 ポイント高い"),
    ],
)
def test_few_seeds_speak_of_themselves(
    seeds: int, english: str, japanese: str, tmp_path: Path
) -> None:
    here = material(*made(tmp_path, {"LoRA": [0.9] * seeds, "FT": [0.5] * seeds}))
    assert english in here.statements("en")[0]
    assert japanese in here.statements("ja")[0]
    assert here.shortfalls("en") == []
    assert here.findings[0].verdict == "better"
    assert "learning rates tried: 1 / 1" in here.statements("en")[0]


def test_lora_against_ft_comes_first_and_every_pair_is_in_the_table(tmp_path: Path) -> None:
    spec, store = made(
        tmp_path,
        {"FT": [0.7], "LoRA": [0.72], "wide": [0.74]},
        {"FT": [1e-4], "LoRA": [1e-3], "wide": [2e-3]},
    )
    here = material(spec, store)
    assert [(one.first.method, one.second.method) for one in here.findings] == [
        ("LoRA", "FT"),
        ("wide", "FT"),
        ("LoRA", "wide"),
    ]
    table = next(table for table in in_words(here, "en") if table.name == "pairs")
    assert [row[1] for row in table.rows] == ["LoRA - FT", "wide - FT", "LoRA - wide"]


# ---- how many examples --------------------------------------------------------------------------


def wikinews() -> Comparison:
    """The kept row of the workbench: n = 328, −.013 [−.032, +.007], one seed."""
    about = {
        "score": "rougeL",
        "first": 0.309,
        "second": 0.322,
        "seeds": 1,
        "seeds_half": 0.0,
        "mcnemar": None,
        "changed": (),
    }
    return Comparison(difference=-0.013, low=-0.032, high=0.007, rows_half=0.0195, n=328, **about)


def test_the_examples_asked_for_have_the_power_they_promise() -> None:
    """It had been n + 1 (329), a coin toss. Simulated: rows of the kept row's own spread, 1,000
    studies of the size asked for."""
    detect, equal = (examples_needed(wikinews(), 0.02, power) for power in (DETECT, EQUAL))
    assert (detect, equal) == (640, 860)
    random, spread = np.random.default_rng(1), 0.0195 / 1.96 * math.sqrt(328)
    found = same = 0
    for _ in range(1000):
        apart = random.normal(0.02, spread, detect)
        half = 1.96 * apart.std(ddof=1) / math.sqrt(detect)
        found += apart.mean() - half > 0
        alike = random.normal(0.0, spread, equal)
        half = 1.96 * alike.std(ddof=1) / math.sqrt(equal)
        same += verdict_of(alike.mean() - half, alike.mean() + half, 0.02) == "equal"
    assert 0.77 < found / 1000 < 0.84
    assert 0.77 < same / 1000 < 0.85


def test_the_sentence_asks_for_both_numbers(tmp_path: Path) -> None:
    here = material(*made(tmp_path, {"LoRA": [0.62], "FT": [0.60]}))
    assert here.findings[0].verdict == "undecided"
    pair = here.findings[0].comparison
    assert pair is not None
    detect, equal = (examples_needed(pair, 0.02, power) for power in (DETECT, EQUAL))
    assert (
        "to detect a difference of 2 points in 80 % of such studies (80 % power) takes about "
        f"{detect:,} examples, to call equal methods equal about {equal:,}"
        in here.statements("en")[0]
    )
    assert (
        f"約 {detect:,} 件、同等な手法を同等と言うには約 {equal:,} 件" in here.statements("ja")[0]
    )


def test_where_seeds_vary_too_much_rows_are_not_asked_for(tmp_path: Path) -> None:
    here = material(*made(tmp_path, {"LoRA": [0.5, 0.7, 0.6], "FT": [0.55, 0.62, 0.7]}))
    assert here.findings[0].verdict == "undecided"
    assert (
        "more examples alone cannot detect a difference of 2 points; more seeds can"
        in here.statements("en")[0]
    )


# ---- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.3027), (4, 2.7764), (30, 2.0423), (20_000, 1.96)]
)
def test_students_t(freedom: float, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=1e-3)


def test_the_mean_of_several_seeds_holds_their_spread_and_is_never_of_no_width() -> None:
    """Table 2 had given ± .000 [x, x] to seeds that agreed, and the rows' width alone to seeds
    that did not."""
    rows = [float(number % 2) for number in range(400)]
    groups = [str(number) for number in range(400)]
    alike, apart = (
        mean_over_seeds([rows] * 3, groups),
        mean_over_seeds([rows, [1.0] * 400, rows], groups),
    )
    assert alike.high - alike.low > 0.09
    assert apart.high - apart.low > 0.5
    dead = mean_over_seeds([[0.0] * 400] * 3, groups)
    assert dead.low == 0
    assert dead.high == pytest.approx(1.96**2 / (400 + 1.96**2))
    same = paired_difference([rows] * 3, [rows] * 3, groups)
    assert same.low < 0 < same.high


# ---- searches -----------------------------------------------------------------------------------


def test_a_setting_is_exempt_from_the_lock_only_where_both_tried_the_same(tmp_path: Path) -> None:
    """Batch had been exempt as soon as both grids named it, whatever they held."""
    task = save_made(tmp_path / "task", N)
    for batches, noted in (((8, 16), False), ((16,), True)):
        spec = study_of(task, {"LoRA": [1e-3], "FT": [1e-3]})
        methods = [
            spec.methods[0].model_copy(update={"grid": {**spec.methods[0].grid, "batch": (8, 16)}})
        ]
        methods.append(
            spec.methods[1].model_copy(update={"grid": {**spec.methods[1].grid, "batch": batches}})
        )
        spec = spec.model_copy(update={"methods": tuple(methods)})
        store = Store(tmp_path / f"out{len(batches)}")
        for cell in expand(spec):
            good = 0.8 if (cell.config.train.batch == 8) == (cell.method.name == "LoRA") else 0.6
            keep(
                store, cell.config, {"validation": part_right(N, good), "test": part_right(N, good)}
            )
        table = next(
            table for table in in_words(material(spec, store), "en") if table.name == "scores"
        )
        assert (
            any(
                "compared configurations differ in batch: LoRA 8 (of 2), FT 16" in note
                for note in table.notes
            )
            == noted
        )


def test_the_best_of_many_has_no_ordinary_interval_and_a_ratio_needs_a_searched_middle(
    tmp_path: Path,
) -> None:
    task = save_made(tmp_path / "task", N)
    rates = {"LoRA": [1e-4, 1e-3, 1e-2], "FT": [1e-5, 1e-4, 1e-3]}
    for best, ratio in ((1, True), (2, False)):
        spec, store = study_of(task, rates), Store(tmp_path / f"out{best}")
        for cell in expand(spec):
            place = rates[cell.method.name].index(cell.config.train.learning_rate)
            good = (
                0.8 if place == (best if cell.method.name == "LoRA" else 1) else 0.5 + place / 100
            )
            keep(
                store,
                cell.config,
                {"validation": part_right(N, good)}
                | ({"test": part_right(N, good)} if good == 0.8 else {}),
                validation_loss=1 - place,
            )
        tables = {table.name: table for table in in_words(material(spec, store), "en")}
        assert tables["landscape"].rows[0][3] == "0.800 (best of 3)"
        assert [row[2] for row in tables["grid"].rows if row[-1]] == ["0.800 (best of 3)"] * 2
        assert any("is 10 times that of FT" in note for note in tables["landscape"].notes) == ratio
        cell = collect(spec, store).chosen["m", "made", "LoRA"]
        assert _rate_lies_inside(cell) == ratio
        assert (
            any("Best configuration on the edge" in note for note in tables["landscape"].notes)
            != ratio
        )
    assert any("tried one learning rate" in note for note in notes_of_one_rate(tmp_path))


def notes_of_one_rate(root: Path) -> list[str]:
    here = material(*made(root / "one", {"LoRA": [0.7], "FT": [0.7]}))
    return list(next(table for table in in_words(here, "en") if table.name == "landscape").notes)


def test_configurations_are_counted_by_paired_differences(tmp_path: Path) -> None:
    """Near: against the best, on the same rows. Dead: against the floor, by the rule that holds on
    test."""
    task = save_made(tmp_path / "task", N)
    shares = {1e-5: 0.2, 1e-4: 1 / 3, 3e-4: 0.36, 1e-3: 0.9, 3e-3: 0.86, 1e-2: 0.7}
    spec, store = study_of(task, {"LoRA": list(shares)}), Store(tmp_path / "out")
    for cell in expand(spec):
        good = shares[cell.config.train.learning_rate]
        keep(
            store,
            cell.config,
            {"validation": part_right(N, good)},
            validation_loss=0.05 if good == 0.7 else 1 - good,
        )
    table = next(
        table for table in in_words(material(spec, store), "en") if table.name == "landscape"
    )
    # Nested answers: .86 differs from .90 in twelve rows that all point one way, so it is not
    # near, though its interval overlaps.
    assert table.rows[0][4:7] == ("1 (17%)", "3 (50%)", "2 (33%)")
    (note,) = [note for note in table.notes if "rank-correlated" in note]
    assert "scores 0.700, the best 0.900: the lowest loss is not among the best scores" in note


def test_rank_correlation() -> None:
    assert _ranks([3.0, 1.0, 1.0]) == [2.0, 0.5, 0.5]
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def test_what_was_not_run_yet_is_not_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = made(tmp_path, {"LoRA": [0.75], "FT": [0.7]})
    text, whole = media(spec.model_copy(update={"seeds": 3}), store, capsys)
    assert not whole
    assert "4 seeds of chosen configurations were not run yet" in text["report.md"]
    for record in store.records():
        Run(record.folder).change(scores=(record.scored("validation"),))
    text, whole = media(spec, store, capsys)
    assert not whole
    assert "2 chosen configurations were not scored on test yet" in text["report.en.html"]


# ---- what is missing ----------------------------------------------------------------------------


def test_what_is_missing_is_kept_told_and_forgotten_when_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = made(tmp_path, {"LoRA": [0.75]}, {"LoRA": [1e-3], "FT": [1e-4]})
    label = expand(spec)[1].label
    keep_missing(store.root, spec, {label: "full fine-tuning needs 31 GiB on cuda, 22 free"})
    text, whole = media(spec, store, capsys)
    assert not whole
    for medium, said in text.items():
        assert "FT has no result: full fine-tuning needs 31 GiB on cuda, 22 free" in said, medium
    keep(
        store,
        expand(spec)[1].config,
        {"validation": part_right(N, 0.7), "test": part_right(N, 0.7)},
    )
    assert collect(spec, store).missing == {}
    keep_missing(store.root, spec, {})
    assert read_missing(store.root, spec) == {}


def test_a_task_that_cannot_be_read_today_keeps_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, store = made(tmp_path, {"LoRA": [0.75], "FT": [0.7]})
    (tmp_path / "task" / "test.jsonl").unlink()
    text, whole = media(spec, store, capsys)
    assert not whole
    assert "| made | m-LoRA | 0.750 [" in text["report.md"].replace("*", "")
    for medium in ("terminal", "json", "report.md", "report.en.html"):
        assert "Task made cannot be read" in text[medium], medium
    assert "no verdict between LoRA and FT" in text["report.md"]


def test_a_damaged_run_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    spec, store = made(tmp_path, {"LoRA": [0.75], "FT": [0.7]})
    broken = next(record.folder for record in store.records() if record.config.method == "full")
    (broken / "outcome.json").write_text("{", encoding="utf-8")
    assert [f"{broken.name}/outcome.json: damaged" in said for said in store.damaged()] == [True]
    assert set(collect(spec, store).chosen) == {("m", "made", "LoRA")}


def test_an_interval_has_as_many_decimals_as_its_verdict_needs() -> None:
    """[-1.9, +2.0] seemed to lie within 2 points where +2.05 did not: five readers asked."""
    pair = dataclasses.replace(wikinews(), low=-0.0187, high=0.02045)
    assert verdict_of(pair.low, pair.high, 0.02) == "undecided"
    assert decimals_of(pair, 0.02) == 2
    assert decimals_of(dataclasses.replace(pair, high=0.032), 0.02) == 1
    assert decimals_of(dataclasses.replace(pair, low=0.0003, high=0.032), 0.02) == 2


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"lanes": 20, "exclusive_cost": None}, ""),
        ({"lanes": 20, "exclusive_cost": {8: {"lanes": 1}}}, "uses the same peak memory"),
        ({"lanes": 1, "exclusive_cost": None}, "uses 40.0 times the peak memory"),
    ],
)
def test_the_memory_of_many_adapters_is_not_that_of_one(
    tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    """A study stopped before its probes had said “uses 95 % less peak memory” of a method
    that was probed alone, against one whose twenty adapters had trained together."""
    task = save_made(tmp_path / "task", N)
    spec, store = study_of(task, {"LoRA": [1e-3], "FT": [1e-4]}), Store(tmp_path / "out")
    for cell in expand(spec):
        changes: dict[str, Any] = {}
        if cell.method.name == "LoRA":
            together = {**COST, "lanes": lora["lanes"], "peak_allocated_bytes": 40 * 2**30}
            probe = lora["exclusive_cost"] and {8: {**COST, **lora["exclusive_cost"][8]}}
            changes = {"cost": together, "exclusive_cost": probe}
        right = part_right(N, 0.7, shift=9 * (cell.method.name == "FT"))
        keep(store, cell.config, {"validation": right, "test": right}, **changes)
    whole = material(spec, store)
    [whole_sentence] = whole.statements("en")
    assert said in whole_sentence
    assert ("memory" in whole_sentence) == bool(said)
    costs = next(table for table in in_words(whole, "en") if table.name == "costs")
    assert (costs.rows[0][3] == "-") == (not said)


def test_methods_without_a_result_are_named_once(tmp_path: Path) -> None:
    """A study stopped before test had printed a line for each of 84 pairs."""
    tested = {"LoRA": [0.9], "A": [], "B": [], "C": [], "FT": [0.8]}
    rates = {name: [number * 1e-3] for number, name in enumerate(tested, 1)}
    whole = material(*made(tmp_path, tested, rates))
    said = whole.statements("en")
    assert [text for text in said if "no verdict among" in text] == [
        "m · made: no verdict among A, B, C, which have no result: not run."
    ]
    assert not any("between A and B" in text or "between B and C" in text for text in said)
    assert any("between LoRA and A" in text for text in said)
    assert any("LoRA did better than FT" in text for text in said)
    ja = [text for text in whole.statements("ja") if "A、B、C" in text]
    assert len(ja) == 1
