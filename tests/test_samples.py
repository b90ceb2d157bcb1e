"""The built-in model and the sample tasks: what ships, loads without a network, and cannot be
solved by counting words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsugiki.config.run import TaskChoice
from tsugiki.data.tasks import load_task

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes" / "sample_tasks"))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("sample_nli", (1500, 252, 252)),
        ("sample_choice", (800, 150, 150)),
        ("sample_headline", (500, 100, 100)),
    ],
)
def test_sizes_and_no_row_stands_in_two_parts(name: str, sizes: tuple[int, ...]) -> None:
    task = load_task(TaskChoice(name=name))
    assert tuple(len(task.examples[part]) for part in ("train", "validation", "test")) == sizes
    seen = [
        {tuple(sorted(one.fields.items())) for one in task.examples[part]}
        for part in ("train", "validation", "test")
    ]
    assert [len(rows) for rows in seen] == list(sizes), "no row twice"
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_the_data_is_what_the_recipe_makes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/sample_tasks/build.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = ROOT / "src/tsugiki/presets/tasks/samples"
    assert {path.name for path in kept.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in kept.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_hypothesis_alone_says_nothing_and_words_alone_say_little() -> None:
    from baselines import inference_baselines

    found = inference_baselines()
    assert found["hypothesis only"] <= 0.36
    assert found["premise only"] <= 0.42
    assert found["both, bag of n-grams"] <= 0.45


def test_five_candidates_are_not_told_apart_by_words() -> None:
    from baselines import choice_baselines

    assert all(value <= 0.30 for value in choice_baselines().values())


def test_test_words_of_the_choice_task_never_were_right_in_training() -> None:
    task = load_task(TaskChoice(name="sample_choice"))
    categories = {one.target for one in task.examples["train"]} & {
        one.target for one in task.examples["test"]
    }
    asked = {one.target for one in task.examples["test"] if "「" not in one.fields["question"]}
    assert not asked & {one.target for one in task.examples["train"]}
    assert categories, "relations (category names) are shared"


def test_the_built_in_model_loads_and_writes_with_the_network_blocked(tmp_path: Path) -> None:
    code = (
        "import socket, os\n"
        "def refuse(*a, **k): raise OSError('network is blocked')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse; socket.getaddrinfo = "
        "refuse\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from tsugiki.model.folder import BUILTIN\n"
        "tokenizer = AutoTokenizer.from_pretrained(BUILTIN); model = "
        "AutoModelForCausalLM.from_pretrained(BUILTIN)\n"
        "ids = tokenizer('今日は', return_tensors='pt').input_ids\n"
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0]))\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {
        "HF_HOME": str(tmp_path),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    text, count = done.stdout.strip().splitlines()
    assert text.startswith("今日は")
    assert 4e6 <= int(count) <= 12e6


def test_the_model_is_small_and_its_card_tells_its_numbers() -> None:
    folder = ROOT / "src/tsugiki/presets/models/tsugiki-mame"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 26e6
    measured = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for number in (
        f"{measured['tokens'] / 1e6:.0f} M",
        *(f"{value:.2f}" for value in measured["bits_per_character"].values()),
    ):
        assert number in card
    assert measured["parameters"] == 10_153_344
    package = sum(path.stat().st_size for path in (ROOT / "src").rglob("*") if path.is_file())
    assert package < 40e6


def test_the_tokenizer_keeps_its_promises() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/tsugiki/presets/models/tsugiki-mame")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer.tokenize("[SEP]")) == 1
    assert tokenizer.tokenize("２０２３年") == ["2", "0", "2", "3", "年"]
    for text in ("改行\nも、絵文字😀も、ABCも残る。", "半角ｶﾅ"):
        ids = tokenizer(text)["input_ids"]
        import unicodedata

        assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text)
    vocab = tokenizer.get_vocab()
    assert not [
        piece
        for piece in vocab
        if len(piece) > 1 and not piece.startswith("<0x") and any(char.isdigit() for char in piece)
    ]


@pytest.mark.slow
def test_the_recipe_of_the_built_in_model_runs_from_text_to_a_loadable_folder(
    tmp_path: Path,
) -> None:
    """The documented command on a toy corpus and two steps: every stage, and a second call that
    keeps what is there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.path.insert(0, str(ROOT / "recipes" / "builtin_model"))
    from corpus import SOURCES

    sentences = [
        line
        for path in (ROOT / "src/tsugiki/presets/tasks/samples").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    (tmp_path / "corpus").mkdir()
    for number, name in enumerate(SOURCES):
        documents = [
            f"{name}の文書{n}。" + "\n".join(sentences[(n + number) % 900 :][:4])
            for n in range(2000)
        ]
        (tmp_path / "corpus" / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    command = [
        sys.executable,
        str(ROOT / "recipes/builtin_model/build.py"),
        "--corpus",
        str(tmp_path / "corpus"),
        "--work",
        str(tmp_path / "work"),
    ]
    command += [
        "--out",
        str(tmp_path / "model"),
        "--vocab",
        "1500",
        "--vocab-sizes",
        "1500",
        "--tokenizer-characters",
        "200000",
    ]
    command += ["--shape", "d256x6", "--rows", "1", "--micro", "1", "--steps", "2"]
    for stage in ("tokenizer", "pack", "train", "export"):
        command += ["--stage", stage]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    assert model.config.vocab_size == 1500 >= len(tokenizer)
    assert tokenizer.decode(tokenizer("文1: 犬[SEP]").input_ids) == "文1: 犬[SEP]"
    measured = json.loads((tmp_path / "model" / "pretraining.json").read_text(encoding="utf-8"))
    assert measured["steps"] == 2
    assert set(measured["bits_per_character"]) == set(SOURCES)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count("kept, ") == 3
