"""LoRA over a base in 4 bits beside LoRA over bf16, ours and peft's, in one run on one CUDA device.

    python -m benchmarks.qlora_vs_peers --out OUT.json      (about three minutes on one card)
    python -m benchmarks.qlora_vs_peers --out OUT.json --table > OUT.md   (measures nothing)

Models, rows and padding are those of step_vs_peers.py (random weights, rows of JNLI's lengths,
batch 8); rank 16 on all linear layers. The peer is peft over bitsandbytes' own 4-bit layers (NF4,
blocks of 64, also with scales in 8 bits) in bf16 without a needless attention mask, padded to 16s.
Ours and the peer over 4 bits start from the same weights: their losses of step 1 must agree.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.step_vs_peers import (
    BATCH,
    DEVICE,
    RANK,
    build,
    eager_steps,
    gib,
    make_rows,
    settings,
    spread,
    this_call,
)
from torch import nn

from tsugiki.config.run import LoraConfig
from tsugiki.model.layouts import groups_of
from tsugiki.model.lora import attach_lanes
from tsugiki.model.numerics import Numerics
from tsugiki.model.quantise import quantise_layers
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.open_step import open_step

CASES: dict[str, dict[str, Any]] = {
    "ours bf16": {"kept": "bf16", "lanes": 1},
    "ours NF4": {"kept": "nf4", "lanes": 1},
    "ours NF4, 8 lanes": {"kept": "nf4", "lanes": 8},
    "peft + bitsandbytes NF4": {"peer": True, "double": False},
    "peft + bitsandbytes NF4, double": {"peer": True, "double": True},
}


def ours(size: str, kept: str, lanes: int, steps: int) -> dict[str, Any]:
    rows, model = make_rows("jnli"), build(size, "llama", torch.bfloat16)
    train = settings(steps * BATCH / len(rows))
    if kept == "nf4":
        quantise_layers(model, DEVICE, torch.bfloat16)
    wanted = LoraConfig(targets="all-linear", rank=RANK, alpha=2 * RANK)
    attached = attach_lanes(model, [(wanted, seed) for seed in range(lanes)])
    group = [
        Lane(f"{seed}", one.parameters, train, len(rows), moves=OneVector(one))
        for seed, one in enumerate(attached)
    ]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    numerics = Numerics(compute="bf16", base=kept, trained="fp32")
    start = time.perf_counter()
    with open_step(model, group, rows, pad_id=0, device=DEVICE, numerics=numerics) as step:
        opened = torch.cuda.max_memory_reserved()
        result = fit(step, group, DEVICE, folders=[None] * lanes)[0]
        first_step_s = time.perf_counter() - start
    history = result.history  # its times are a lane's share
    return {
        "first_loss": history.loss[0],
        "all_s": round(first_step_s, 1),
        **spread([1000 * s for s in history.step_s[5:]], history.step_tokens[5:]),
        "reserved_gib": gib(max(opened, torch.cuda.max_memory_reserved())),
        "lanes": lanes,
    }


def in_the_librarys_4_bits(model: Any, double: bool) -> None:
    """What transformers does when it loads a model so: its own layers, all but the output's."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for paths in groups_of(model):
        for path in paths:
            module = model.get_submodule(path)
            made = Linear4bit(
                module.in_features, module.out_features, bias=False, quant_type="nf4",
                compute_dtype=torch.bfloat16, compress_statistics=double, device="meta",
            )  # fmt: skip
            weight = Params4bit(
                module.weight.data.cpu(), requires_grad=False, quant_type="nf4",
                compress_statistics=double, module=made,
            )  # fmt: skip
            made.weight = weight.to(DEVICE)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
            module.weight = nn.Parameter(torch.empty(0))
    model.is_loaded_in_4bit = True


def peer(size: str, double: bool, steps: int) -> dict[str, Any]:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    rows, model = make_rows("jnli"), build(size, "llama")
    in_the_librarys_4_bits(model, double)
    config = PeftConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    model.train()
    moved = [p for p in model.parameters() if p.requires_grad]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(moved, lr=1e-4, weight_decay=0.0, fused=True)
    start = time.perf_counter()
    made = eager_steps(model, moved, optimizer, rows, steps)
    return {**made, "all_s": round(time.perf_counter() - start, 1)}


def table(kept: dict[str, Any]) -> str:
    lines = [
        "# LoRA over 4 bits",
        "",
        f"{kept['call']}. Batch {BATCH}, rows of JNLI's lengths, rank {RANK} on all linear layers, "
        "Llama layout with random weights of the paper's sizes. Written by "
        "`benchmarks/qlora_vs_peers.py --table`; how each number is made stands in the script.",
        "",
        "ms: an adapter's share of a step, median of the second half of the steps (quartiles) "
        "· GiB: peak reserved while it trains.",
        *(["", kept["note"]] if "note" in kept else []),
        "",
        "| | | ms | quartiles | GiB | n |",
        "|---|---|---|---|---|---|",
    ]
    for key, result in kept["cases"].items():
        size, name = key.split(" · ")
        if "failed" in result:
            lines.append(f"| {size} | {name} | {result['failed'][:80]} | | | |")
            continue
        low, high = result["ms_late_quartiles"]
        lines.append(
            f"| {size} | {name} | {result['ms_late']:.1f} | "
            f"{low:.1f}–{high:.1f} | {result['reserved_gib']:.1f} | "
            f"{result['n'] - result['n'] // 2} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", default=["1b", "6.7b"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))))
        return
    kept: dict[str, Any] = {"call": this_call(), "cases": {}}
    for size in args.sizes:
        for name, case in CASES.items():
            try:
                result = (
                    peer(size, case["double"], args.steps)
                    if "peer" in case
                    else ours(size, case["kept"], case["lanes"], args.steps)
                )
            except Exception as failed:  # a peer that does not fit or is not installed
                result = {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:200]}"}
            gc.collect()
            torch.cuda.empty_cache()
            kept["cases"][f"{size} · {name}"] = result
            text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
            args.out.write_text(text, encoding="utf-8")
            print(size, name, {k: v for k, v in result.items() if k != "times_ms"}, flush=True)
        same = [kept["cases"][f"{size} · {name}"] for name in list(CASES)[1:4]]
        losses = [result["first_loss"] for result in same if "first_loss" in result]
        if max(losses) > 1.01 * min(losses):
            print(f"{size}: not the same work: {losses}", flush=True)


if __name__ == "__main__":
    main()
