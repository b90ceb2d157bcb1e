"""The recipe of the encoder on a toy corpus: from text to a folder that loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src/tsugiki/presets/models/tsugiki-mame"


def run(script: str, *options: object) -> None:
    command = [sys.executable, str(ROOT / "recipes/encoder" / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_from_text_to_a_folder_that_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    documents = [f"文書{n}では、駅の前で{n % 7}人が電車を待っている。" for n in range(600)]
    (tmp_path / "texts.txt").write_text("\n\n".join(documents), encoding="utf-8")
    work, out = tmp_path / "work", tmp_path / "encoder"
    run(
        "prepare.py",
        "--corpus",
        tmp_path,
        "--sources",
        "texts",
        "--tokenizer",
        MODEL,
        "--out",
        work,
    )
    shape = ["--hidden", 32, "--layers", 2, "--context", 16, "--rows", 4, "--steps", 60]
    given = ["--tokens", work / "tokens.xz", "--tokenizer", work / "tokenizer"]
    run("pretrain.py", *given, "--out", out, *shape)

    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "pretraining.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(out),
        AutoTokenizer.from_pretrained(out),
    )
    measured = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
    assert measured["steps"] == 60
    assert measured["parameters"] == model.num_parameters()
    first, last = measured["log"][0]["loss"], measured["log"][-1]["loss"]
    assert last < first, "it learns"
    assert 0 < measured["held_out_loss"] < 9.2  # of a uniform guess: ln 8,064 = 9.0

    # The ids of the causal model's tokenizer stand, [MASK] comes after them; pairs as RoBERTa's.
    causal = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.mask_token_id == len(causal)
    assert tokenizer.model_max_length == 16
    text, other = "駅の前。", "雨。"
    ids, others = (causal(one, add_special_tokens=False).input_ids for one in (text, other))
    assert tokenizer(text, other).input_ids == [1, *ids, 2, 2, *others, 2]
    # As long as it may be, an input has a position for each token.
    assert model(torch.full((1, 16), 7)).logits.shape == (1, 16, model.config.vocab_size)
