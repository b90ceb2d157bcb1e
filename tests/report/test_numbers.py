"""`results.csv` and `comparison.csv` hold every score, cost, count and difference of the page;
LaTeX for a paper; what others wrote is escaped in every medium."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.kept import make
from tsugiki.errors import ConfigError
from tsugiki.report.latex import COLUMNS, paper_table, to_latex
from tsugiki.report.material import Material, gather
from tsugiki.report.svg import stand_alone
from tsugiki.report.table import InWords, markdown, spreadsheet, visible
from tsugiki.report.write import pdf_writer
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, find_study, parse_study
from tsugiki.words import texts

PAGES = make.HERE / make.PAGES
Rows = list[dict[str, str]]


def rows_of(name: str) -> Rows:
    with (PAGES / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def pick(rows: Rows, **wanted: str) -> dict[str, str]:
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def page_table(language: str, name: str) -> list[list[str]]:
    """A table of the page, read from its HTML as a reader sees it."""
    page = (PAGES / f"report.{language}.html").read_text(encoding="utf-8")
    body = page.split(f'id="{name}"', 1)[1].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in body.split("<tr>")[1:]]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    folder = tmp_path_factory.mktemp("kept")
    for name in ("out", "tasks"):
        shutil.copytree(make.HERE / name, folder / name)
    shutil.copy(make.HERE / make.STUDY, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = parse_study(find_study(str(make.STUDY)), str(make.STUDY))
        yield gather(collect(study, Store(make.ROOT)))


def method_of_row(name: str) -> tuple[str, str]:
    model, method = name.split("-", 1)
    return model, method


def score_text(rows: Rows, mean: Mapping[str, str]) -> str:
    """The page's score of a method, from the rows of its mean alone."""
    own = [row for row in rows if row["seed"] == "mean" and same_method(row, mean)]
    names = ["rouge1", "rouge2", "rougeL"] if mean["metric"] == "rougeL" else [mean["metric"]]
    text = "/".join(f"{float(pick(own, metric=name)['value']):.3f}" for name in names)
    text += f" [{float(mean['low']):.3f}, {float(mean['high']):.3f}]"
    if int(float(pick(own, metric="seeds")["value"])) > 1:
        text += f" ± {float(pick(own, metric=mean['metric'] + ':sd')['value']):.3f}"
    return text


def same_method(row: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(row[key] == other[key] for key in ("model", "task", "method"))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_score_count_and_difference_of_the_page_is_in_the_files(language: str) -> None:
    results, compared = rows_of("results.csv"), rows_of("comparison.csv")
    means = [row for row in results if row["seed"] == "mean" and row["low"]]
    checked = 0
    for task, name, score, difference, n, seeds, valid in page_table(language, "scores"):
        needs_no_model = [row for row in results if not row["model"] and row["task"] == task]
        if "†" in name:
            continue  # quoted
        own = [
            row
            for row in means
            if row["task"] == task and f"{row['model']}-{row['method']}" == name
        ]
        if not own:
            values = {f"{float(row['value']):.3f}" for row in needs_no_model}
            failed = (
                "failed" in score or "失敗" in score or "no result" in score or "結果なし" in score
            )
            assert set(score.split("/")) <= values or failed, (name, score)
            continue
        [mean] = own
        assert score == score_text(results, mean), name
        assert n == mean["n"]
        tests = [row for row in results if row["part"] == "test" and same_method(row, mean)]
        counts = pick([row for row in tests if row["seed"] == "mean"], metric="seeds")
        assert seeds == f"{float(counts['value']):.0f}"
        rates = [row for row in tests if row["metric"] == "candidate_rate"]
        assert valid == (f"{float(rates[0]['value']):.3f}" if rates else "-")
        if "[" in difference:
            values = [float(text) for text in re.findall(r"[+-][\d.]+", difference)]
            pairs = [
                row
                for row in compared
                if row["measured_on"] == "test"
                and row["task"] == task
                and mean["method"] in (row["first"], row["second"])
                and row["difference"]
            ]
            points = [
                [round(100 * float(row[key]) + 0.0, 1) for key in ("difference", "low", "high")]
                for row in pairs
            ]
            turned = [[-value for value in (own[0], own[2], own[1])] for own in points]
            assert values in points + turned, (name, difference)
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_cost_of_the_page_is_in_the_file(language: str) -> None:
    results = rows_of("results.csv")
    costs = [row for row in results if row["part"] == "" and row["chosen"] == "True"]
    checked = 0
    for task, name, trained, *shown in page_table(language, "costs"):
        if "†" in name:
            continue
        own = [
            row
            for row in costs
            if row["task"] == task and f"{row['model']}-{row['method']}" == name
        ]
        trainable = {row["value"] for row in own if row["metric"] == "trainable_parameters"}
        assert trained in {f"{float(value) / 1e6:,.2f}" for value in trainable}
        numbers = {f"{float(row['value']):.4f}" for row in own if row["metric"] == "step_s_median"}
        numbers |= {
            f"{float(row['value']) / 2**20:,.1f}" for row in own if row["metric"] == "weights_bytes"
        }
        numbers |= {
            f"{float(row['value']):.4f}"
            for row in results
            if row["metric"] == "answer_s" and row["task"] == task
        }
        for cell in shown:
            text = re.sub(r" \(\d+\)$", "", cell)
            assert text == "-" or text in numbers, (name, cell)
            checked += text != "-"
    assert checked >= 6


def test_every_count_of_answers_is_in_the_file() -> None:
    """Kinds of answers, of the first seed."""
    results, checked = rows_of("results.csv"), 0
    page = (PAGES / "report.en.html").read_text(encoding="utf-8")
    head = page.split('id="failures"', 1)[1].split("<thead>", 1)[1].split("</thead>", 1)[0]
    names = re.findall(r"<th[^>]*>(.*?)</th>", head)[1:-1]
    known = {text: key for key, text in texts("en").items() if key.startswith("failure.")}
    for name, *counts, n in page_table("en", "failures"):
        model, task, method = name.split(" · ")
        key = {"model": model, "task": task, "method": method}
        own = [row for row in results if row["part"] == "test" and row["seed"] not in ("", "mean")]
        own = [row for row in own if same_method(row, key)]
        first = [row for row in own if row["seed"] == own[0]["seed"]]
        for text, count in zip(names, counts, strict=True):
            metric = "answers:" + known[text].removeprefix("failure.")
            rows = [row for row in first if row["metric"] == metric]
            assert count == (rows[0]["value"] if rows else "0"), (name, text)
            assert not rows or rows[0]["n"] == n
            checked += 1
    assert checked >= 6


def test_the_pairs_of_the_page_are_the_rows_of_the_file() -> None:
    compared = [row for row in rows_of("comparison.csv") if row["measured_on"] == "test"]
    for (where, pair, difference, seeds, _), row in zip(
        page_table("en", "pairs"), compared, strict=True
    ):
        assert where == f"{row['model']} · {row['task']}"
        assert pair == f"{row['first']} - {row['second']}"
        assert seeds == (row["seeds"] or "-")
        values = [100 * float(row[key]) for key in ("difference", "low", "high") if row[key]]
        text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values) if values else "-"
        assert difference.replace("-0.0", "+0.0") == text.replace("-0.0", "+0.0")


def test_json_holds_what_csv_does() -> None:
    for name in ("results", "comparison"):
        rows = rows_of(f"{name}.csv")
        objects = json.loads((PAGES / f"{name}.json").read_text(encoding="utf-8"))
        assert len(rows) == len(objects) > 5
        for row, content in zip(rows, objects, strict=True):
            assert {key: str(value) for key, value in content.items()} == {
                key: value for key, value in row.items() if value or key in content
            }


def test_every_figure_of_the_page_has_a_file() -> None:
    page = (PAGES / "report.en.html").read_text(encoding="utf-8")
    names = re.findall(r'data-figure="([^"]+)"', page)
    assert len(names) == len(set(names)) >= 8
    files = {path.stem for path in (PAGES / "figures").glob("*.svg")}
    assert set(names) == files
    for path in (PAGES / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        assert "currentColor" not in text


def test_a_figure_is_a_pdf_where_the_extra_is_installed() -> None:
    to_pdf = pdf_writer()
    if to_pdf is None:
        pytest.skip("cairosvg is not installed here")
    svg = stand_alone('<svg viewBox="0 0 10 10" role="img"><text>差</text></svg>')
    assert to_pdf(svg.encode()).startswith(b"%PDF")


def test_the_table_for_a_paper_has_the_columns_that_are_asked_for(kept: Material) -> None:
    text = paper_table(kept.result, kept.findings, ["score", "n", "params"])
    head = next(line for line in text.splitlines() if line.startswith("Method"))
    assert head == r"Method & {Score} & {$n$} & {Params (M)} \\"
    assert text.count(r"\midrule") == len(kept.result.study.tasks)
    assert r"\caption{Scores on test in points.}" in text
    with pytest.raises(ConfigError, match=r'no column "scor"\. Did you mean "score"'):
        paper_table(kept.result, kept.findings, ["scor"])


@pytest.mark.slow
def test_the_table_for_a_paper_compiles(kept: Material, tmp_path: Path) -> None:
    if shutil.which("lualatex") is None:
        pytest.skip("no lualatex here")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode:
        pytest.skip("no siunitx here")
    tables = paper_table(kept.result, kept.findings, list(COLUMNS))
    tables += paper_table(kept.result, kept.findings)
    (tmp_path / "t.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,siunitx}\\begin{document}\n"
        + tables
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


def test_what_others_wrote_is_escaped_in_every_medium() -> None:
    """A line break in a citation ended LaTeX's comment; a cell that starts with = was run."""
    noted = InWords(name="t", title="a\nb", header=("h",), rows=(("x\ny",),), notes=("one\ntwo",))
    lines = to_latex(noted).splitlines()
    assert lines[-1] == "% one two"
    assert lines[0].startswith("% a b;")
    assert all(line.startswith(("%", "\\", "h", "x y")) for line in lines)
    assert markdown("a|b `c` *d* _e_ f_g <i> [x](y)\nz") == (
        r"a\|b \`c\` \*d\* \_e\_ f_g &lt;i> [x\](y)⏎z"
    )
    assert spreadsheet("=1+1") == "'=1+1"
    assert spreadsheet("@x") == "'@x"
    assert spreadsheet("-") == "-"
    assert spreadsheet("a=b") == "a=b"
    assert visible("a\x1b[31mb\u202ec") == "a□[31mb□c"
