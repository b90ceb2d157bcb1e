"""No password and no token leaves by what is printed or kept."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tsugiki.errors import (
    ConfigError,
    DataError,
    TsugikiError,
    first_line,
    message_of,
    reason_of,
    without_secrets,
)
from tsugiki.files import without_folders
from tsugiki.model.folder import _by_way_of

pytestmark = pytest.mark.precision

SECRET = "s3cretS3cretS3cret99"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://me:{SECRET}@host.example/x", "https://…@host.example/x"),
        (f"https://{SECRET}@host.example/x", "https://…@host.example/x"),
        (f"http://me:{SECRET}@proxy:3128", "http://…@proxy:3128"),
        (f"socks5h://me:a@{SECRET}@proxy:1", "socks5h://…@proxy:1"),
        (f"https://h/x?token={SECRET}&part=1", "https://h/x?token=…&part=1"),
        (f"https://h/x?a=1&sig={SECRET}", "https://h/x?a=1&sig=…"),
        (f"https://h/x?X-Amz-Signature={SECRET}&b=2", "https://h/x?X-Amz-Signature=…&b=2"),
        (f"https://h/x?AccessKey={SECRET}, and more", "https://h/x?AccessKey=…, and more"),
        (f"(https://h/?api_key={SECRET}): no", "(https://h/?api_key=…): no"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer …"),
        (f"hf_{SECRET} is set", "hf_… is set"),
        # What is none stays whole.
        ("owner@example.org wrote", "owner@example.org wrote"),
        ("https://host/a@b?part=1&page=2", "https://host/a@b?part=1&page=2"),
        ("a basic model: bearer of news", "a basic model: bearer of news"),
        ("[SEP] tokens=3 key=value", "[SEP] tokens=3 key=value"),
    ],
)
def test_secrets_are_cut_and_nothing_else(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
    assert without_secrets(without_secrets(text)) == without_secrets(text)


def test_errors_reasons_and_pages_say_none() -> None:
    address = f"https://me:{SECRET}@host/x?token={SECRET}"
    for error in (TsugikiError(address), ConfigError(address), DataError(address)):
        assert SECRET not in str(error)
        assert SECRET not in reason_of(error)
    for broken in (ValueError(address), OSError(5, address), OSError(5, "x", address)):
        assert SECRET not in reason_of(broken)
        assert SECRET not in message_of(broken)
        assert SECRET not in first_line(broken)
    assert SECRET not in without_folders(f"tsugiki study s.toml --set url={address}")


def test_what_requests_go_by_is_named_without_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://me:{SECRET}@127.0.0.1:9")
    assert "HF_ENDPOINT=" in _by_way_of()
    assert SECRET not in str(TsugikiError(_by_way_of()))


def test_every_error_of_ours_is_cut_where_it_is_made() -> None:
    """No error of ours writes its own text."""
    source = Path(__file__).parents[1] / "src" / "tsugiki"
    writers = [
        path.name
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(
            "Error" in ast.unparse(base) or "Exception" in ast.unparse(base) for base in node.bases
        )
        and any(getattr(own, "name", "") == "__str__" for own in node.body)
    ]
    assert writers == ["errors.py"]


def test_a_crash_says_none_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsugiki.cli import commands

    def broken(**given: object) -> None:
        raise ValueError(f"https://me:{SECRET}@host")

    monkeypatch.setattr(commands, "app", broken)
    for module in ("export_commands", "list_command", "run_commands", "task_commands"):
        monkeypatch.setattr(f"tsugiki.cli.{module}.app", broken)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in said
    assert "https://…@host" in said
