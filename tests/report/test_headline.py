"""The first screen: short however much was compared, and never more than was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.build_runs import keep, part_right, save_made, study_of
from tsugiki.report.headline import MOST_PAIRS, headline
from tsugiki.report.looks import looks_of
from tsugiki.report.material import Material, gather
from tsugiki.report.write import write_report
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, expand

N = 60


def compared(
    tmp_path: Path, scores: Mapping[str, Sequence[float]], tasks: Sequence[str] = ("made",)
) -> tuple[Material, Path]:
    """A study of made-up runs: of each method the scores of its seeds, the same on all tasks."""
    paths = [
        save_made(tmp_path / name, N).rename(tmp_path / name / f"{name}.toml") for name in tasks
    ]
    for path in paths:
        text = path.read_text(encoding="utf-8").replace('name = "made"', f'name = "{path.stem}"')
        path.write_text(text, encoding="utf-8")
    seeds, given = max(map(len, scores.values())), [{"name": str(path)} for path in paths]
    spec = study_of(paths[0], {name: [1e-3] for name in scores}, seeds=seeds, tasks=given)
    store = Store(tmp_path / "out")
    for cell in expand(spec):
        for number, score in enumerate(scores[cell.method.name]):
            train = cell.config.train.model_copy(update={"seed": number})
            config = cell.config.model_copy(update={"train": train})
            keep(store, config, {"validation": part_right(N, score), "test": part_right(N, score)})
    return gather(collect(spec, store)), store.root


def test_many_methods_leave_the_screen_short(tmp_path: Path) -> None:
    names = [f"LoRA{number}" for number in range(MOST_PAIRS + 2)]
    material, _ = compared(tmp_path, {name: [0.75] for name in names} | {"FT": [0.8]})
    first = headline(material, "en")
    assert len(first.verdicts) == MOST_PAIRS + 1
    assert first.verdicts[-1].startswith("93 more pairs stand under")
    assert all(" and FT " in line for line in first.verdicts[:-1]), "those with the reference"
    assert first.forest.count('class="halo"') == 2 * MOST_PAIRS
    assert len({look.colour for look in looks_of(material.result).values()}) == 8


def test_every_task_has_the_same_pairs_on_the_screen(tmp_path: Path) -> None:
    """A task is not left without its pairs since others came before it."""
    names = [f"LoRA{number}" for number in range(8)]
    given = {name: [0.75] for name in names} | {"FT": [0.8]}
    material, _ = compared(tmp_path, given, tasks=("one", "two"))
    drawn = headline(material, "en").forest
    for task in ("m · one", "m · two"):
        assert drawn.count(f">{task}<") == 1
    assert drawn.count('class="halo"') == 2 * 2 * len(names)


def test_one_method_alone_stands_against_what_needs_no_model(tmp_path: Path) -> None:
    material, _ = compared(tmp_path, {"LoRA": [0.9]})
    first = headline(material, "en")
    assert first.verdicts == ("m · made: LoRA: 0.900, above the majority class (0.333).",)
    assert first.forest == ""
    assert not first.costs


def test_methods_that_did_not_learn_are_named_in_a_few_words(tmp_path: Path) -> None:
    material, _ = compared(tmp_path, {"LoRA": [0.2], "FT": [0.8]})
    first = headline(material, "en")
    assert first.verdicts == (
        "m · made: no verdict between LoRA and FT: not above the majority class (0.333): "
        "LoRA (0.200).",
    )


def test_what_does_not_follow_names_seeds_and_equality(tmp_path: Path) -> None:
    material, _ = compared(tmp_path, {"LoRA": [0.78], "FT": [0.8]})
    limits = " ".join(headline(material, "en").limits)
    assert "That LoRA and FT are equal, or that either is better: m · made." in limits
    assert "That other seeds would say the same: m · made." in limits
    three, _ = compared(tmp_path / "three", {"LoRA": [0.9, 0.9, 0.9], "FT": [0.6, 0.6, 0.6]})
    limits = " ".join(headline(three, "en").limits)
    assert "equal" not in limits
    assert "seeds" not in limits
    assert "Anything about other models or data. Measured: m on made." in limits
    assert "as many trained parameters" in headline(three, "en").costs[0]


def test_a_name_of_a_method_is_text_everywhere(tmp_path: Path) -> None:
    name = "a\"<b>&'x, $%_{}\\ =1"
    material, root = compared(tmp_path, {name: [0.9], "FT": [0.8]})
    folder = write_report(material, root).parent
    page = (folder / "report.en.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert re.search(r'data-method="a&quot;&lt;b&gt;&amp;', page)
    latex = (folder / "paper-table.tex").read_text(encoding="utf-8")
    assert r"\textless{}b\textgreater{}\&'x, \$\%\_\{\}\textbackslash{}" in latex
    for path in (folder / "figures").iterdir():
        assert re.fullmatch(r"[\w.+-]+", path.name)
