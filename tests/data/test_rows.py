"""Rows as programs that people use save them: Excel for Japan, pandas, datasets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.data import rows
from tsugiki.data.rows import encoding_of, read_rows
from tsugiki.errors import DataError

TABLE = "本文,星\r\n とても良い。①髙﨑 ,良い\r\n壊れた～,悪い\r\n"
READ = [{"本文": " とても良い。①髙﨑 ", "星": "良い"}, {"本文": "壊れた～", "星": "悪い"}]


def contents(path: Path, encoding: str | None = None) -> list[dict[str, Any]]:
    found = list(read_rows(path, encoding))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [row for _, row in found]


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.csv", TABLE.encode("utf-8"), "utf-8"),
        ("a.csv", TABLE.encode("utf-8-sig"), "utf-8-sig"),
        ("a.csv", TABLE.encode("cp932"), "cp932"),
        ("a.CSV", TABLE.replace(",", "\t").encode("utf-16"), "utf-16"),  # Excel's Unicode text
        ("a.tsv", TABLE.replace(",", "\t").encode("cp932"), "cp932"),
        ("a.csv.gz", gzip.compress(TABLE.encode("cp932")), "cp932"),
        ("a.csv", b"a,b\r\n1,2\r\n", "utf-8"),
    ],
    ids=["UTF-8", "with a mark", "CP932", "UTF-16", "TSV", "gzip", "ASCII"],
)
def test_a_spreadsheets_file_is_read_in_the_encoding_that_it_has(
    name: str, content: bytes, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert encoding_of(tmp_path / name) == encoding
    wanted = [{"a": "1", "b": "2"}] if content.startswith(b"a,b") else READ
    assert contents(tmp_path / name) == wanted


@pytest.mark.parametrize("encoding", ["euc_jp", "iso2022_jp"])
def test_another_encoding_is_read_where_it_is_named(encoding: str, tmp_path: Path) -> None:
    text = "本文,星\n" + "とても使いやすいです。,良い\nすぐに壊れました。,悪い\n" * 20
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert contents(tmp_path / "a.csv", encoding)[1] == {"本文": "すぐに壊れました。", "星": "悪い"}
    if encoding == "euc_jp":  # which CP932 reads as half-width katakana
        with pytest.raises(DataError, match=r'neither UTF-8 nor CP932.*encoding = "euc_jp"'):
            contents(tmp_path / "a.csv")
    with pytest.raises(DataError, match="not in the encoding no-such"):
        contents(tmp_path / "a.csv", "no-such")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n\x80\xfd,\xa0\xff\n")
    with pytest.raises(DataError, match="neither UTF-8 nor CP932"):
        contents(tmp_path / "a.csv")


def test_what_a_spreadsheet_leaves_empty_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,,\n1,2,,\n,,,\n3,,,\n", encoding="utf-8")
    assert contents(tmp_path / "a.csv") == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}]
    (tmp_path / "a.csv").write_text("a,b,\n1,2,\n1,2,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 2 \(line 3\): column 3 has a value, and no name"):
        contents(tmp_path / "a.csv")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
def test_json_by_line_or_as_an_array(ending: str, encoding: str, tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in READ]
    text = (
        f"\n[{','.join(lines)}]"
        if ending[:5] == ".json" and "l" not in ending
        else "\n".join(lines)
    )
    content = text.encode(encoding)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert contents(path, "cp932" if encoding == "cp932" else None) == READ


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream", "feather"])
def test_columns_of_arrow(kind: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    feather = pytest.importorskip("pyarrow.feather")
    parquet = pytest.importorskip("pyarrow.parquet")
    table, path = arrow.Table.from_pylist(READ), tmp_path / f"a.{kind.split(maxsplit=1)[0]}"
    if kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        made = arrow.ipc.new_stream if "stream" in kind else arrow.ipc.new_file
        with made(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    assert contents(path) == READ
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or cut short"):
        contents(path)


def test_a_packed_file_that_is_broken_or_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "a.csv.gz", gzip.compress(TABLE.encode() * 500)
    for content in (whole[: len(whole) // 2], b"a,b\n1,2\n", whole[:40] + b"\0\0" + whole[42:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.csv\.gz: (damaged or cut short|.*neither)"):
            contents(path)
    monkeypatch.setattr(rows, "MOST_UNPACKED", 10_000)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="unpacks to more than"):
        contents(path)
