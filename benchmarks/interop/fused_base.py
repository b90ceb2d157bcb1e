"""A small base whose q, k and v are one weight, to be trained: random weights, the built-in model's
tokenizer.

    python benchmarks/interop/fused_base.py gpt_neox FOLDER      # or gpt2

Runs in tsugiki's own environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from tsugiki.model.folder import BUILTIN

WIDTH, LAYERS, HEADS, POSITIONS = 256, 4, 4, 512


def model_of(kind: str, common: dict[str, int]) -> PreTrainedModel:
    """A model of the kind with random weights."""
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS, **common
        )
        config.n_ctx = POSITIONS  # llama.cpp's converter reads it
        return GPT2LMHeadModel(config)
    config = GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=POSITIONS, rotary_pct=1.0, **common,
    )  # fmt: skip
    config.rotary_pct = 1.0  # llama.cpp's converter reads it
    return GPTNeoXForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("gpt_neox", "gpt2"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    given = json.loads((BUILTIN / "config.json").read_text("utf-8"))
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(0)
    model_of(args.kind, {name: given[name] for name in names}).save_pretrained(args.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, args.folder)


if __name__ == "__main__":
    main()
