"""The command line as a user meets it: exit codes, one-line errors, help that comes fast."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from tsugiki import __version__

pytestmark = pytest.mark.precision

COMMANDS = [
    "study",
    "run",
    "score",
    "ls",
    "show",
    "compare",
    "generate",
    "report",
    "export",
    "tasks",
    "check",
    "demo",
    "predict",
    "import",
]


def tsugiki(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tsugiki", *arguments], capture_output=True, text=True, cwd=cwd
    )


class Terminal(io.StringIO):
    """What a command writes to as if somebody sat there."""

    def isatty(self) -> bool:
        return True


def in_this_process(
    patch: pytest.MonkeyPatch,
    *arguments: str,
    cwd: Path | None = None,
    stream: type[io.StringIO] = io.StringIO,
) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, which takes five seconds to load PyTorch."""
    from tsugiki.cli.commands import main

    out, err = stream(), stream()
    patch.setattr(sys, "argv", ["tsugiki", *arguments])
    patch.setattr(warnings, "showwarning", warnings.showwarning)
    patch.setenv("OPENBLAS_NUM_THREADS", "1")  # a command may set it for itself
    if cwd is not None:
        patch.chdir(cwd)
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return subprocess.CompletedProcess(arguments, int(str(code)), out.getvalue(), err.getvalue())


def test_help_names_every_command_and_loads_no_torch() -> None:
    done = tsugiki("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    code = (
        "import sys, tsugiki.cli.commands; "
        "print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_version_is_printed_at_once() -> None:
    """Within 0.3 s of CPU, on a machine that does other things too."""
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tsugiki("--version")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (0, f"tsugiki {__version__}\n")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str) -> None:
    done = tsugiki(command, "--help") if command != "tasks" else tsugiki("tasks", "show", "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "papper"], 'study "papper": no such study. Did you mean "paper"?'),
        (["study", "nowhere.toml"], "nowhere.toml: no such file"),
        (["study", "demo", "--set", "train.epoch=1"], 'epoch: unknown key. Did you mean "epochs"?'),
        (["score", "nowhere"], "nowhere: no such folder. tsugiki ls lists the runs"),
        (["tasks", "show", "jnl"], 'task "jnl": no such task. Did you mean "jnli"?'),
        (["report", "demo", "--out", "nowhere"], "no finished run of this study there"),
        (["check", "nowhere.toml"], "nowhere.toml: no such file"),
        (["ls", "--out", "nowhere"], "nowhere: no runs there"),
        (["compare", "nowhere", "nowhere"], "no such folder"),
        (
            ["run", "src/tsugiki/presets/tasks/sample_nli.toml"],
            "this is a task file. Check it with",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(monkeypatch, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_the_cells_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = in_this_process(
        monkeypatch, "study", "paper", "--dry-run", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0
    lora = [line for line in done.stdout.splitlines() if "LoRA" in line]
    full = [line for line in done.stdout.splitlines() if "· FT ·" in line]
    assert (len(lora) / 2 / 3, len(full) / 2 / 3) == (72, 40), (
        "the paper's Table 3, for two models and three tasks"
    )
    assert not (tmp_path / "out").exists()


def test_a_study_finds_the_task_beside_it_from_any_folder(tmp_path: Path) -> None:
    from tests import build

    task = build.save_task(tmp_path / "mine")
    study = (
        'name = "s"\n[train]\nlearning_rate = 1e-3\n[[models]]\npath = '
        '"builtin"\n[[tasks]]\nname = "tiny.toml"\n[[methods]]\nname = "FT"\nkind = "ft"\n'
    )
    (task.parent / "study.toml").write_text(study, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "check", str(task.parent / "study.toml")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "\nok\nNext: tsugiki study " in done.stdout


def test_sigterm_during_a_step_is_one_line_and_the_same_command_goes_on(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of its own is `test_sigterm_keeps_a_checkpoint_…`, which is slow."""
    from tsugiki.train.step import EagerStep

    (tmp_path / "run.toml").write_text(
        f'[model]\npath = "{model_folder}"\n[task]\nname = "{task_file}"\n'
        "[lora]\nrank = 2\n[train]\nlearning_rate = 1e-3\nepochs = 3\nbatch = 4\n",
        encoding="utf-8",
    )
    step = EagerStep.__call__

    def terminated(self: EagerStep, lanes: list) -> list:
        if lanes[0].step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, lanes)

    command = ("run", "run.toml", "--out", "runs", "--lang", "en")
    with monkeypatch.context() as patched:
        patched.setattr(EagerStep, "__call__", terminated)
        first = in_this_process(patched, *command, cwd=tmp_path)
    assert first.returncode == 130, first.stderr
    assert "Run the same command again to go on" in first.stderr
    assert "Traceback" not in first.stderr
    second = in_this_process(monkeypatch, *command, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "going on from step 5 of 18" in second.stderr
    third = in_this_process(monkeypatch, *command, cwd=tmp_path)
    assert "finished before; nothing was run" in third.stderr


@pytest.mark.slow
def test_sigterm_keeps_a_checkpoint_and_the_same_command_says_that_it_goes_on(
    tmp_path: Path,
) -> None:
    task = (
        '[model]\npath = "builtin"\n[task]\nname = "sample_nli"\ntrain_rows = 64\neval_rows = 6\n'
    )
    text = (
        task
        + '[lora]\ntargets = "v"\nrank = 2\n[train]\nlearning_rate = 1e-3\nepochs = 6\nbatch = 4\n'
    )
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "tsugiki", "run", "run.toml", "--out", "runs"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.rglob("outcome.json")):
        time.sleep(0.05)
    time.sleep(0.5)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 130, said
    assert "Run the same command again to go on" in said
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "going on from step" in second.stderr
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "finished before; nothing was run" in third.stderr


def test_tasks_are_listed() -> None:
    done = tsugiki("tasks", "list")
    assert done.returncode == 0
    for name in ("jnli", "jcommonsenseqa", "xlsum_ja", "sample_nli"):
        assert name in done.stdout


@pytest.mark.slow
def test_help_answers_within_half_a_second() -> None:
    tsugiki("--help")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        tsugiki("--help")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_a_stopped_run_is_listed_as_stopped_and_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "tsugiki-runs" / "runs" / "t-m-lora-0"
    folder.mkdir(parents=True)
    asked = {
        "model": {"path": "builtin"},
        "task": {"name": "sample_nli"},
        "lora": {"targets": "q+v"},
        "train": {"learning_rate": 1e-3},
    }
    what = {"device": "CPU", "rows": {"train": 1}, "model_sha256": "0" * 64}
    what["numerics"] = {"compute": "fp32", "base": "fp32", "trained": "fp32"}
    for name, content in (
        ("config.json", asked),
        ("provenance.json", what),
        ("outcome.json", {"status": "running"}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    listed = tsugiki("ls", "--json", cwd=tmp_path)
    assert json.loads(listed.stdout)[0]["status"] == "stopped"
    shown = tsugiki("show", "t-m-lora-0", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Next: tsugiki score" in shown.stdout


def test_a_file_in_another_encoding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_bytes('name = "日本"\n'.encode("cp932"))
    done = in_this_process(monkeypatch, "check", "s.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "s.toml: must be UTF-8" in done.stderr
    (tmp_path / "s.toml").write_bytes("\ufeffname = “x”\n".encode())
    assert "curly signs" in in_this_process(monkeypatch, "check", "s.toml", cwd=tmp_path).stderr
