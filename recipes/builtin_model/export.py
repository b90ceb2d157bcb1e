"""Writes the HF folder that ships in the package: config, bf16 safetensors in one file, tokenizer,
measurements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "sep_token": "[SEP]",
    "unk_token": "<unk>",
    "model_max_length": 1024,
    "clean_up_tokenization_spaces": False,
}


def export(work: Path, out: Path, vocab: int) -> None:
    """Copies the trained weights and writes the tokenizer beside them; `pretraining.json` keeps
    the numbers of the card."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(work / "train" / "hf" / name, out / name)
    shutil.copy(work / f"tokenizer-{vocab}.json", out / "tokenizer.json")
    (out / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
    result = json.loads((work / "train" / "result.json").read_text(encoding="utf-8"))
    result["sources"] = json.loads((work / "packed" / "packed.json").read_text(encoding="utf-8"))
    result["log"] = result["log"][:: max(1, len(result["log"]) // 60)]
    measured = work / "tokenizer.measured.json"
    if measured.exists():
        result["characters_per_token"] = json.loads(measured.read_text(encoding="utf-8"))
    (out / "pretraining.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
