"""A study that is planned before test is read, and that says what tuning did to the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.build import in_words, save_other, study_of
from tsugiki.cli.check import Planned, check_file, duration
from tsugiki.config.study import StudySpec
from tsugiki.data.batch import num_steps
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, RunError
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.events import Events
from tsugiki.runs.reading import read_record
from tsugiki.runs.store import Store
from tsugiki.study import chosen
from tsugiki.study.cells import collect, parse_study
from tsugiki.study.forecast import forecast
from tsugiki.study.kept_plan import plan_path, read_plan
from tsugiki.study.sweep import run_study
from tsugiki.train import memory


def planned(model: Path, task: Path, **changes: object) -> dict:
    given = study_of(model, task)
    lora, full = given["methods"]
    methods = [
        {**lora, "grid": {**lora["grid"], "learning_rate": [1e-2]}},
        {**full, "grid": {"learning_rate": [1e-3]}},
        {"name": "base", "kind": "base", "shots": [0, 1]},
    ]
    return {**given, "methods": methods, "seeds": 3, "reference_rows": False, **changes}


def spec(model: Path, task: Path, **changes: object) -> StudySpec:
    return parse_study(planned(model, task, **changes), "study")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.txt"
    path.write_text("犬が公園を走っています。\n\n猫は魚を食べた。\n\n子どもが庭にいる。\n")
    return path


@pytest.fixture
def other_task(task_file: Path, tmp_path: Path) -> Path:
    return save_other(task_file, tmp_path / "other", "other")


# ---- the plan -----------------------------------------------------------------------------------


def test_the_plan_is_kept_before_test_is_read_and_stays(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = spec(model_folder, task_file, power=0.8), Store(tmp_path)
    score_run, seen = chosen.score_run, list[bool]()

    def watched(record: object, part: str, events: Events) -> object:
        seen.append(plan_path(tmp_path, study).exists())
        return score_run(record, part, events)  # type: ignore[arg-type]

    monkeypatch.setattr(chosen, "score_run", watched)
    result = run_study(study, store)
    assert seen
    assert all(seen), "every seed was trained, and the plan written, before the first test row"
    plan = read_plan(tmp_path, study)
    assert plan is not None
    assert plan == result.plan
    [pair] = plan.pairs
    assert (pair.first, pair.second, pair.test_rows) == ("LoRA", "FT", 9)
    assert (pair.seeds, pair.pilot_seeds, pair.pilot_rows) == (3, 3, 9)
    assert (pair.margin, pair.power) == (2.0, 0.8)
    assert 0 <= pair.equal.power <= pair.detect.power <= 1
    before = plan_path(tmp_path, study).read_bytes()
    run_study(study, store)
    assert plan_path(tmp_path, study).read_bytes() == before


def test_the_page_says_what_was_planned_and_what_was_found(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = spec(model_folder, task_file, power=0.8)
    run_study(study, Store(tmp_path))
    material = gather(collect(study, Store(tmp_path)))
    table = next(each for each in in_words(material) if each.name == "planned")
    aims = ("equal within ±2 points, power 0.8", "a difference of 2 points, power 0.8")
    assert [row[:5] for row in table.rows] == [
        ("tiny · tiny", "LoRA - FT", aim, "9", "3") for aim in aims
    ]
    assert any("from 9 validation rows and 3 seeds" in note for note in table.notes)
    write_report(material, tmp_path)
    folder = plan_path(tmp_path, study).parent
    for language, words in (("en", "Planned and found"), ("ja", "計画と結果")):
        page = (folder / f"report.{language}.html").read_text(encoding="utf-8")
        assert words in page
    assert "needed,found" in (folder / "planned.csv").read_text(encoding="utf-8-sig")


def test_nothing_is_planned_of_what_never_answered(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = planned(model_folder, task_file, power=0.8)
    absent = {"name": "encoder", "kind": "encoder", "model": {"path": str(tmp_path / "none")}}
    absent["grid"] = {"learning_rate": [1e-3]}
    study = parse_study({**given, "methods": [*given["methods"], absent]}, "study")
    plan = run_study(study, Store(tmp_path)).plan
    assert plan is not None
    assert [(pair.first, pair.second) for pair in plan.pairs] == [("LoRA", "FT")]


def test_nothing_is_planned_after_test_was_read(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    run_study(spec(model_folder, task_file), Store(tmp_path))
    later = spec(model_folder, task_file, power=0.8)
    assert run_study(later, Store(tmp_path)).plan is None
    tables = in_words(gather(collect(later, Store(tmp_path))))
    table = next(each for each in tables if each.name == "planned")
    assert table.rows == ()
    assert any("No plan is kept of before test was read" in note for note in table.notes)


@pytest.mark.slow
def test_a_damaged_plan_is_named_and_the_study_goes_on(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = spec(model_folder, task_file, power=0.8)
    path = plan_path(tmp_path, study)
    path.parent.mkdir(parents=True)
    path.write_text('{"pairs": [{}]}', encoding="utf-8")
    with pytest.raises(RunError, match=r"plan\.json: damaged or cut short"):
        read_plan(tmp_path, study)
    notes: list[str] = []
    result = run_study(study, Store(tmp_path), Events(on_note=notes.append))
    assert result.missing == {}
    assert any("no plan:" in note for note in notes)
    assert path.read_text(encoding="utf-8") == '{"pairs": [{}]}', "never guessed at"
    assert any("plan.json" in said for said in collect(study, Store(tmp_path)).damaged)


def written(folder: Path, given: dict) -> Path:
    def lines(value: object) -> str:
        if isinstance(value, dict):
            inner = ", ".join(f"{key} = {lines(each)}" for key, each in value.items())
            return f"{{ {inner} }}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(lines, value))}]"
        return json.dumps(value, ensure_ascii=False)

    path = folder / "study.toml"
    text = "\n".join(f"{key} = {lines(value)}" for key, value in given.items())
    path.write_text(text, encoding="utf-8")
    return path


def test_check_says_hours_disk_rows_and_seeds_and_keeps_the_plan(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, planned(model_folder, task_file))
    asked = Planned(out=tmp_path / "out", margin=1, power=0.9)
    said = "\n".join(check_file(file, planned=asked))
    assert "time: tiny · tiny · LoRA: 3 runs" in said
    assert "at least" in said
    assert "GiB of weights" in said
    assert "at ±1 points (two one-sided tests, α = 0.025 a side) with n = 9, 3 seeds" in said
    assert "planned on" in said
    assert "from assumed variances" in said
    study = spec(model_folder, task_file)
    plan = read_plan(tmp_path / "out", study)
    assert plan is not None
    assert (plan.pairs[0].margin, plan.pairs[0].power) == (1, 0.9)
    run_study(study, Store(tmp_path / "out"))
    said = "\n".join(check_file(file, planned=asked))
    assert "everything of it was run" in said
    assert "not kept: test was read already" in said
    assert "from 9 validation rows and 3 seeds" in said


def test_time_is_taken_from_earlier_runs_on_the_device(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    run_study(spec(model_folder, task_file, seeds=1), Store(tmp_path))
    file = written(tmp_path, planned(model_folder, task_file, seeds=4))
    said = "\n".join(check_file(file, planned=Planned(out=tmp_path)))
    assert "time: tiny · tiny · LoRA: 3 runs, 18 steps: about" in said
    assert "at least" not in said
    assert "add --power 0.8" in said


def test_check_counts_shared_steps_once_and_says_memory_and_what_halving_saves(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Epochs 1 and 2 of a constant schedule are one run; four settings could be halved."""
    given = planned(model_folder, task_file, seeds=1)
    given["train"] = {**given["train"], "schedule": "constant"}
    rates = [1e-3, 2e-3, 5e-3, 1e-2]
    grid = {"learning_rate": rates, "epochs": [1, 2], "targets": ["q+v"], "rank": [2]}
    given["methods"] = [{"name": "LoRA", "kind": "lora", "grid": grid}]
    study = parse_study(given, "study")
    task = load_task(study.tasks[0])
    result = collect(study, Store(tmp_path))
    [part] = forecast(result, Store(tmp_path), {study.tasks[0].label: task})
    whole = num_steps(len(task.examples["train"]), 8, 2)
    assert part.runs == 8
    assert part.steps == len(rates) * whole
    assert part.halved_runs == len(rates)
    assert part.halved_s == pytest.approx(part.train_s / 2)
    said = "\n".join(check_file(written(tmp_path, given), planned=Planned(out=tmp_path)))
    assert re.search(r"  tiny: memory: LoRA, 8 configurations: 0\.\d GiB", said)
    assert "with successive halving of LoRA (search.prune" in said


def test_what_does_not_fit_is_a_line_of_check_and_the_rest_is_looked_at(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study makes it a row with its reason; `check` had ended there, without hours or memory."""
    monkeypatch.setattr(memory, "room", lambda device: (100_000, 24 * 2**30))
    file = written(tmp_path, study_of(model_folder, task_file))
    said = "\n".join(check_file(file, planned=Planned(out=tmp_path)))
    assert "does not fit here: 2 configurations: full fine-tuning needs" in said
    assert "time: tiny · tiny · LoRA: 2 runs" in said
    assert said.endswith("ok")


def test_a_plan_is_of_a_study(task_file: Path, tmp_path: Path) -> None:
    text = f'[model]\npath = "builtin"\n[task]\nname = "{task_file.as_posix()}"\n[train]\n'
    (tmp_path / "run.toml").write_text(text + "learning_rate = 1e-3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="a comparison is planned of a study"):
        list(check_file(tmp_path / "run.toml", planned=Planned(out=tmp_path, margin=1)))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- forgetting ---------------------------------------------------------------------------------


def test_what_is_chosen_and_the_base_are_scored_on_the_rest(
    model_folder: Path, task_file: Path, other_task: Path, text_file: Path, tmp_path: Path
) -> None:
    rest = [str(task_file), {"name": str(other_task)}, str(text_file)]
    study = spec(model_folder, task_file, forgetting=rest)
    result = run_study(study, Store(tmp_path))
    assert result.missing == {}
    for key, cell in result.chosen.items():
        for record in result.seeds(cell):
            names = [entry.name for entry in read_record(record.folder).outcome.elsewhere]
            assert names == ([] if key[2] == "base 1-shot" else ["other", "held_out"]), key
    material = gather(collect(study, Store(tmp_path)))
    table = next(each for each in in_words(material) if each.name == "forgetting")
    rows = [(row[1], row[2], row[4]) for row in table.rows]
    measured = ("other (generated)", "other (likeliest candidate)", "held_out (perplexity)")
    assert rows == [(method, on, "3") for on in measured for method in ("LoRA", "FT", "LoRA - FT")]
    assert any("Scoring these took" in note for note in table.notes)
    for language in ("en", "ja"):
        [said] = [each for each in material.statements(language) if "held_out" in each]
        assert "LoRA" in said
    page = write_report(material, tmp_path).parent / "report.en.html"
    assert "Forgetting: tasks and texts" in page.read_text(encoding="utf-8")


def test_the_bases_perplexity_against_itself_is_one(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    """An adapter that learned nothing: no difference at all."""
    given = planned(model_folder, task_file, seeds=1, forgetting=[str(text_file)])
    given["methods"][0]["grid"]["learning_rate"] = [1e-30]
    study = parse_study(given, "study")
    run_study(study, Store(tmp_path))
    material = gather(collect(study, Store(tmp_path)))
    [change] = [each for each in material.changes if each.key[2] == "LoRA" and not each.other]
    assert change.ratio == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    assert change.value == pytest.approx(change.against)


@pytest.mark.slow
def test_seeds_whose_weights_are_gone_are_a_reason_and_their_scores_stay(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    """FT's seeds drop their weights after the test: who asks for more later is told which have
    none."""
    store = Store(tmp_path)
    first = run_study(spec(model_folder, task_file), store)
    before = {run.folder.name: run.scored("test").main.value for run in store.records()
              if run.scores("test")}  # fmt: skip
    assert first.missing == {}
    later = run_study(spec(model_folder, task_file, forgetting=[str(text_file)]), store)
    gone = [label for label in later.missing if "FT" in label]
    assert [label.rsplit(" · ", 2)[1:] for label in gone] == [
        ["seed 2", "forgetting"],
        ["seed 3", "forgetting"],
    ]
    assert all("its weights were not kept" in later.missing[label] for label in gone)
    assert len(later.missing) == 2
    after = {run.folder.name: run.scored("test").main.value for run in store.records()
             if run.scores("test")}  # fmt: skip
    assert before == after
    cell = next(cell for key, cell in later.chosen.items() if key[2] == "FT")
    records = later.seeds(cell)
    assert [len(read_record(run.folder).outcome.elsewhere) for run in records] == [1, 0, 0]
    material = gather(collect(spec(model_folder, task_file, forgetting=[str(text_file)]), store))
    assert {(each.key[2], each.seeds) for each in material.changes if not each.other} == {
        ("LoRA", 3),
        ("FT", 1),
    }
    assert all(standing.kind != "seeds failed" for standing in material.standings.values())


def test_a_text_that_is_not_there_is_a_reason_and_the_rest_is_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.txt")
    study = spec(model_folder, task_file, seeds=1, forgetting=[gone])
    result = run_study(study, Store(tmp_path))
    assert list(result.missing) == ["gone · forgetting"]
    assert "no such file" in result.missing["gone · forgetting"]
    assert all(result.seeds(cell) for cell in result.chosen.values())
    again = collect(study, Store(tmp_path))
    assert list(again.missing) == ["gone · forgetting"]


def test_forgetting_needs_the_untouched_base(model_folder: Path, task_file: Path) -> None:
    given = planned(model_folder, task_file, forgetting=["jnli"])
    given["methods"] = given["methods"][:2]
    with pytest.raises(ConfigError, match='add a method with kind = "base"'):
        parse_study(given, "study")
    given["methods"].append({"name": "base", "kind": "base", "tasks": ["another"]})
    with pytest.raises(ConfigError, match='against the untouched base, which "tiny" has not'):
        parse_study(given, "study")
    twice = planned(model_folder, task_file, forgetting=["a/t.txt", "b/t.txt"])
    with pytest.raises(ConfigError, match='two are called "t": give texts a name'):
        parse_study(twice, "study")


def test_what_cannot_be_scored_keeps_nothing_else_from_it(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    """A task whose test rows were trained on, before a text."""
    leak = save_other(
        task_file, tmp_path / "leak", "leak", train="validation", test="train", validation="test"
    )
    rest = [str(leak), str(text_file)]
    result = run_study(
        spec(model_folder, task_file, seeds=1, forgetting=rest), Store(tmp_path / "out")
    )
    assert all(label.endswith(" · forgetting") for label in result.missing)
    assert all("the same rows as the training data" in why for why in result.missing.values())
    for key, cell in result.chosen.items():
        names = [
            entry.name
            for run in result.seeds(cell)
            for entry in read_record(run.folder).outcome.elsewhere
        ]
        expected = {"base 0-shot": ["leak", "held_out"], "base 1-shot": []}
        assert names == expected.get(key[2], ["held_out"])


@pytest.mark.slow
def test_another_title_keeps_the_plan(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    """A changed study file has a folder of its own; what was planned stays planned."""
    first = run_study(spec(model_folder, task_file, power=0.8), Store(tmp_path))
    later = spec(model_folder, task_file, power=0.8, title="another")
    assert collect(later, Store(tmp_path)).plan == first.plan
    other = spec(model_folder, task_file, power=0.8, margin=5.0)
    assert collect(other, Store(tmp_path)).plan is None


def test_a_study_shows_no_forgetting_that_another_asked_for(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    run_study(spec(model_folder, task_file, seeds=1, forgetting=[str(text_file)]), store)
    assert gather(collect(spec(model_folder, task_file, seeds=1), store)).changes == []
