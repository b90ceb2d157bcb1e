"""Models and datasets from the Hub, with the real client against a local server: download, cache,
offline, checksums, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tests import build
from tests.data.hub import serve


def run(code: str, address: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs code in its own process, since the client reads its address at import."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TSUGIKI_"))
    }
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "TSUGIKI_CACHE": str(home / "tsugiki"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )


MODEL = """
from tsugiki.config.run import ModelChoice
from tsugiki.errors import TsugikiError
from tsugiki.model.loading import find_base, load_base
try:
    source = find_base(ModelChoice(path="someone/tiny", revision="main"), "lora", "fp32")
    print(source.checksum, len(load_base(source).tokenizer))
except TsugikiError as error:
    print(type(error).__name__, error)
"""


# The same of a model in the cache, or that should be: without PyTorch, which takes seconds to load.
FOLDER = """
from tsugiki.config.run import ModelChoice
from tsugiki.errors import TsugikiError
from tsugiki.model.folder import checksum_of, resolve, weight_files
try:
    print(checksum_of(weight_files(resolve(ModelChoice(path="someone/tiny", revision="main")))))
except TsugikiError as error:
    print(type(error).__name__, error)
"""


def test_a_model_of_the_hub_is_downloaded_then_read_offline(tmp_path: Path) -> None:
    build.save(tmp_path / "repo")
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"never fetched")
    with serve(tmp_path / "repo", "models", "someone/tiny") as hub:
        first = run(MODEL, hub.address, tmp_path / "home")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()[0]) == 64
    assert not list((tmp_path / "home").rglob("pytorch_model.bin"))
    offline = run(FOLDER, hub.address, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout.split() == first.stdout.split()[:1]
    nothing = run(FOLDER, hub.address, tmp_path / "other", HF_HUB_OFFLINE="1")
    assert nothing.stdout.startswith("ModelError model someone/tiny: not in the cache")
    with serve(tmp_path / "repo", "models", "someone/tiny") as hub:
        ours = run(FOLDER, hub.address, tmp_path / "other", TSUGIKI_OFFLINE="1")
    assert "not in the cache, and TSUGIKI_OFFLINE is set" in ours.stdout


def test_an_unknown_repository_and_one_without_safetensors_are_named(tmp_path: Path) -> None:
    build.save(tmp_path / "repo")
    (tmp_path / "repo" / "model.safetensors").unlink()
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"x")
    with serve(tmp_path / "repo", "models", "someone/tiny") as hub:
        bare = run(FOLDER, hub.address, tmp_path / "home")
        hub.gone = True
        unknown = run(FOLDER, hub.address, tmp_path / "home2")
    assert "no safetensors" in bare.stdout
    assert "no such repository on the Hub" in unknown.stdout


XLSUM = """
from tsugiki.config.run import TaskChoice
from tsugiki.data.tasks import load_task
from tsugiki.errors import TsugikiError
try:
    task = load_task(TaskChoice(name="xlsum_ja"))
    counts = {part: len(rows) for part, rows in task.examples.items()}
    print(counts, task.examples["test"][0].target)
except TsugikiError as error:
    print(type(error).__name__, error)
"""


def test_xlsum_comes_as_parquet_with_verified_counts_and_a_recorded_checksum(
    tmp_path: Path,
) -> None:
    for part, count in (("train", 7113), ("validation", 889), ("test", 889)):
        folder = tmp_path / "repo" / "japanese" / part
        folder.mkdir(parents=True)
        rows = {
            "id": [f"{part}{n}" for n in range(count)],
            "text": ["本文。"] * count,
            "summary": [f"要約{n}" for n in range(count)],
        }
        parquet.write_table(pa.table(rows), folder / "0000.parquet")
    with serve(tmp_path / "repo", "datasets", "csebuetnlp/xlsum") as hub:
        first = run(XLSUM, hub.address, tmp_path / "home")
        assert first.stdout.strip() == "{'train': 7113, 'validation': 889, 'test': 889} 要約0", (
            first.stdout + first.stderr
        )
        for name in ("HF_HUB_OFFLINE", "TSUGIKI_OFFLINE"):
            offline = run(XLSUM, hub.address, tmp_path / "home", **{name: "1"})
            assert offline.stdout == first.stdout
        pins = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (tmp_path / "home" / "tsugiki" / "pins").iterdir()
        ]
        assert {len(pin["sha256"]) for pin in pins} == {64}
        for file in (tmp_path / "home" / "tsugiki" / "hub").rglob("0000.parquet"):
            content = file.resolve().read_bytes()
            file.resolve().write_bytes(content[:-10] + b"0123456789")
        changed = run(XLSUM, hub.address, tmp_path / "home", HF_HUB_OFFLINE="1")
        assert "at the first download and is" in changed.stdout
        table = pa.table({"id": ["a"], "text": ["b"], "summary": ["c"]})
        parquet.write_table(table, tmp_path / "repo" / "japanese" / "test" / "0000.parquet")
        short = run(XLSUM, hub.address, tmp_path / "fresh")
    assert "must have 889 rows, has 1" in short.stdout
