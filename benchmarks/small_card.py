"""The recommended study on a card of 24 GB: what fits is run to the report, what does not is a row
with its reason.

    python -m benchmarks.small_card --data DATA --out OUT [--gb 24]     (about three minutes)

The process may reserve 24 GB of a larger card. The model has the shape of llm-jp-3-1.8b and random
weights (made here), so the scores mean nothing: times, memory and reasons do. The study is the
preset `recommended`, changed so that it ends in minutes: JCommonsenseQA alone with 400 rows for one
epoch, two seeds; and with one row more, LoRA over 4 bits. DATA is the folder that holds its files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tsugiki.model.folder import BUILTIN

SHAPE: dict[str, Any] = {
    "vocab_size": 99_584,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
PRESET = Path("src/tsugiki/presets/studies/recommended.toml")
ROWS = "train_rows = 400\neval_rows = 100"
QLORA = """
[[methods]]
name = "QLoRA"
kind = "lora"
base = "nf4"
[methods.grid]
targets = ["all-linear"]
rank = [16]
alpha = [32]
learning_rate = [2e-4, 5e-4, 1e-3]
"""


def make_model(folder: Path) -> None:
    config = LlamaConfig(**SHAPE, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILTIN).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def write_study(path: Path, model: Path, data: Path) -> None:
    """The preset, its model and its tasks exchanged."""
    text = PRESET.read_text(encoding="utf-8")
    wanted = f'name = "jcommonsenseqa"\nsplit = "official"\ndata_dir = "{data.resolve()}"\n{ROWS}'
    for name, table in (("jcommonsenseqa", wanted), ("jnli", "")):
        assert f'[[tasks]]\nname = "{name}"' in text
        text = text.replace(f'[[tasks]]\nname = "{name}"', f"[[tasks]]\n{table}" if table else "")
    text = text.replace('path = "llm-jp/llm-jp-3-1.8b"', f'path = "{model}"')
    text = text.replace("epochs = 3", "epochs = 1").replace("seeds = 3", "seeds = 2")
    lines = [line for line in text.splitlines() if not line.startswith("forgetting")]
    path.write_text("\n".join(lines) + "\n" + QLORA, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gb", type=float, default=24)
    parser.add_argument("--only", choices=["check", "study"], help="default: one after the other")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, study = args.out / "model-1.8b", args.out / "small_card.toml"
    if not (model / "config.json").exists():
        make_model(model)
    write_study(study, model, args.data)
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.gb * 1e9 / total))
    from tsugiki.cli import commands

    for name in ("check", "study"):
        if args.only not in (None, name):
            continue
        sys.argv = ["tsugiki", name, str(study), "--out", str(args.out / "out")]
        try:
            commands.main()
        except SystemExit as ended:
            print(f"{name}: exit code {ended.code}", flush=True)


if __name__ == "__main__":
    main()
