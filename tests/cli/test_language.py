"""Which language is spoken to whom."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_cli import in_this_process
from tsugiki.cli.language import language_of, page_language
from tsugiki.errors import ConfigError

pytestmark = pytest.mark.precision

KEPT = Path(__file__).parents[1] / "kept"
JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TSUGIKI_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    return


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LC_MESSAGES": "en_US.UTF-8", "LANG": "ja_JP.UTF-8"}, "en"),
        ({"LC_ALL": "ja_JP.eucJP", "LC_MESSAGES": "en_US.UTF-8"}, "ja"),
        ({"LC_ALL": "", "LANG": "ja_JP.UTF-8"}, "ja"),
        ({"TSUGIKI_LANG": "en", "LANG": "ja_JP.UTF-8"}, "en"),
        ({"TSUGIKI_LANG": "ja", "LANG": "en_US.UTF-8"}, "ja"),
    ],
)
def test_a_terminal_speaks_the_systems_language(
    settings: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert language_of(None) == expected
    assert language_of(None, as_json=True) == "en"
    assert language_of("ja", as_json=True) == "ja"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert language_of(None) == "en"
    assert language_of("ja") == "ja"
    assert page_language(None) == expected


def test_windows_names_its_language_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for name, expected in (("Japanese_Japan", "ja"), ("English_United States", "en"), (None, "en")):
        monkeypatch.setattr("locale.getlocale", lambda name=name: (name, "932"))
        assert page_language(None) == expected


def test_a_wrong_language_is_refused_by_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r'--lang "fr": must be en or ja'):
        language_of("fr")
    monkeypatch.setenv("TSUGIKI_LANG", "fr")
    for arguments in (["ls"], ["tasks", "list"], ["study", "demo", "--dry-run"]):
        done = in_this_process(monkeypatch, *arguments)
        assert done.returncode == 2
        assert done.stderr == 'tsugiki: TSUGIKI_LANG "fr": must be en or ja\n'


@pytest.mark.parametrize(
    "command",
    ["ls --out out", "show RUN", "compare RUN RUN", "study paper --dry-run", "tasks list"],
)
def test_commands_speak_both_languages_and_a_pipe_english(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"out/runs/{min(path.name for path in (KEPT / 'out' / 'runs').iterdir())}"
    arguments = command.replace("RUN", run).split()
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    piped = in_this_process(monkeypatch, *arguments, cwd=KEPT)
    given = in_this_process(monkeypatch, *arguments, "--lang", "ja", cwd=KEPT)
    assert (piped.returncode, given.returncode) == (0, 0), piped.stderr + given.stderr
    assert "Next: " in piped.stdout
    assert not JAPANESE.search(piped.stdout)
    assert "次は: " in given.stdout
    assert "Next: " not in given.stdout


def test_every_command_that_prints_words_takes_a_language() -> None:
    from tsugiki.cli import export_commands, list_command, run_commands, task_commands
    from tsugiki.cli.commands import app

    assert {each.app for each in (export_commands, list_command, run_commands)} == {app}
    commands = [*app.registered_commands, *task_commands.tasks_app.registered_commands]
    assert len(commands) > 14
    for command in commands:
        assert command.callback is not None
        assert "lang" in command.callback.__annotations__, command.callback


def test_check_speaks_japanese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of runs (notes, memory) stays as it is written there."""
    out = str(tmp_path / "out")
    done = in_this_process(monkeypatch, "check", "demo", "--lang", "ja", "--out", out)
    assert done.returncode == 0, done.stderr
    for said in ("スタディ demo: 6 設定", "全体で", "計画: --power 0.8", "重みは読み込んで"):
        assert said in done.stdout
