"""The HTML page: whole, self-contained, in both languages; figures with a text alternative; what
differs is marked."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest

from tests.build import study_of
from tsugiki.report.finding import verdict_of
from tsugiki.report.latex import to_latex
from tsugiki.report.looks import Look
from tsugiki.report.material import gather
from tsugiki.report.page import _difference
from tsugiki.report.svg import Point, axis_over, chart
from tsugiki.report.table import Estimated, InWords, Said, Table, column, phrase
from tsugiki.report.write import write_report
from tsugiki.runs.store import Store
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study

VOID = {"meta", "link", "br", "line", "circle", "rect", "polygon", "polyline"}


class Whole(html.parser.HTMLParser):
    """Checks that every element is closed in order; keeps attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = {**study_of(model_folder, task_file), "title": "試し / A <trial>"}
    result = run_study(parse_study(given, "study"), Store(tmp_path))
    page = write_report(gather(result), tmp_path)
    for language, words in (
        ("ja", ("結論", "試し", "学習率")),
        ("en", ("Finding", "A &lt;trial&gt;", "learning rate")),
    ):
        text = (page.parent / f"report.{language}.html").read_text(encoding="utf-8")
        parser = Whole()
        parser.feed(text)
        assert parser.open == []
        assert ("html", "lang", language) in parser.attributes
        links = [value for _, name, value in parser.attributes if name in ("src", "href")]
        ids = {f"#{value}" for _, name, value in parser.attributes if name == "id"}
        assert set(links) <= ids, "nothing but the page itself"
        assert "<script" not in text
        assert "http" not in text.replace("http-equiv", "")
        for word in words:
            assert word in text
        assert (
            text.count("<svg")
            == len(re.findall(r'<svg [^>]*role="img" [^>]*aria-label="[^"]+"', text))
            >= 3
        )
        assert (
            "nothing follows about" if language == "en" else "については何も言えません"
        ) in text.replace("Nothing", "nothing"), "nine rows teach nothing"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.01, 0.015, "equal"),
        (0.005, 0.05, "better"),
        (-0.05, -0.001, "worse"),
        (-0.03, 0.01, "undecided"),
        (0.001, 0.019, "equal"),
    ],
)
def test_a_verdict_follows_from_interval_and_margin(low: float, high: float, expected: str) -> None:
    assert verdict_of(low, high, 0.02) == expected


def test_what_is_not_in_the_reference_is_marked() -> None:
    assert _difference("青い空<", "青い海<") == "青い<mark>海</mark>&lt;"
    assert _difference("空", "空") == "空"


def test_latex_is_escaped_and_every_row_has_its_cells() -> None:
    table = InWords(
        name="t",
        title="t",
        header=("Task", "p_1 & 95 %"),
        rows=(("a_b", "{x} # 5 % \\ ~"), ("c", "d")),
        notes=("one",),
    )
    lines = to_latex(table).splitlines()
    assert lines[1:4] == [r"\begin{tabular}{ll}", r"\toprule", r"Task & p\_1 \& 95 \% \\"]
    assert lines[5] == r"a\_b & \{x\} \# 5 \% \textbackslash{} \textasciitilde{} \\"
    assert lines[-1] == "% one"
    odd = InWords(name="t", title="t", header=("a",), rows=(("[1] \ufffd\x07",),))
    assert "{}[1] □□ " in to_latex(odd)


def test_numbers_stay_numbers_in_csv_and_words_are_of_the_language() -> None:
    """A task called `chance` was translated; CSV held “0.404 [0.363, 0.445]”."""
    columns = (
        column("task", "text", "label.task"),
        column("test", "score", "label.test"),
        column("n", "number", "label.n"),
    )
    text = Said(en="0.404 [0.363, 0.445]", ja="0.404 [0.363, 0.445]")
    score = Estimated(value=0.4041, low=0.363, high=0.445, words=text)
    rows = (("chance", score, 560), (phrase("label.chance"), phrase("label.no_result"), None))
    table = Table(name="t", title=Said(en="t", ja="表"), columns=columns, rows=rows)
    assert table.in_words("ja").rows == (
        ("chance", "0.404 [0.363, 0.445]", "560"),
        ("チャンスレベル", "結果なし", "-"),
    )
    assert table.in_words("ja").header == ("タスク", "テスト", "事例数")
    assert table.to_csv().splitlines() == [
        "task,test,test_low,test_high,n,note",
        "chance,0.4041,0.363,0.445,560,",
        "chance,,,,,test: no result",
    ]


def test_a_terminal_leaves_out_the_same_columns_in_both_languages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were hidden by their English titles, so that --lang ja printed all of them."""
    from tsugiki.cli.progress import show_tables

    monkeypatch.setenv("FORCE_COLOR", "1")  # as if standard output were a terminal
    columns = (
        column("task", "text", "label.task"),
        column("n", "number", "label.n", report_only=True),
    )
    table = Table(name="t", title=Said(en="t", ja="表"), columns=columns, rows=(("a", 560),))
    for language, title in (("en", "Task"), ("ja", "タスク")):
        show_tables([table], language)
        said = capsys.readouterr().out
        assert title in said
        assert "560" not in said


def test_a_chart_draws_every_point_inside_its_frame() -> None:
    points = {
        "a": [Point(x=1e-5, y=0.2, low=0.1, high=0.3), Point(x=1e-3, y=0.9)],
        "b": [Point(x=1e-4, y=0.5, strong=True)],
    }
    looks = {name: Look(name=name, colour="#0072B2") for name in "ab"}
    x, y = axis_over([1e-5, 1e-3], "rate", log=True), axis_over([0.1, 0.9], "score")
    svg = chart(points, looks, x, y, "score", floor=("chance", 0.2))
    assert svg.count('class="floor"') == 1
    assert svg.count("<g><title>") == 3
    marks = [float(value) for value in re.findall(r'c[xy]="([0-9.]+)"', svg)]
    assert all(0 <= value <= 460 for value in marks)
    single = {"a": [Point(x=1, y=0.0)]}
    flat = chart(single, looks, axis_over([1], "x"), axis_over([0.0], "y"), "flat")
    assert "nan" not in flat
