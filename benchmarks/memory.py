"""Is the memory that `tsugiki check` foretells what training takes? Peak reserved bytes of many
configurations, measured on one CUDA device, beside the ledger's figures (`train/ledger`).

    python -m benchmarks.memory --out OUT.json --layout llama      (about 6 minutes on one card)
    python -m benchmarks.memory --out OUT.json --fit       the factors, from every second case
    python -m benchmarks.memory --out OUT.json --table > OUT.md           (both measure nothing)

Models of the paper's sizes with random weights, rows of the lengths of row_lengths.json. A case is
what a run does: adapters or halves made, the step opened (all shapes warmed up, then recorded), a
few steps taken. Measured is the most that PyTorch's allocator had reserved from before the step was
opened until its last step; what loading left behind is given back before.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.step_vs_peers import BATCH, DEVICE, SIZES, build, gib, make_rows, this_call

from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.model.layouts import GPT2, LLAMA, target_names
from tsugiki.model.lora import attach_lanes, detach
from tsugiki.model.numerics import Numerics
from tsugiki.model.quantise import quantise_layers
from tsugiki.train import ledger
from tsugiki.train.engine import fit
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import DoesNotFit, Lane, OneVector
from tsugiki.train.ledger import Ledger, Load, Sizes, load_of, sizes_of
from tsugiki.train.open_step import open_step

ALL, QV = "all-linear", "q+v"
# Kinds: lanes, targets, rank, what the base is kept in; or what of [train] full fine-tuning reads.
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"lanes": 1, "targets": ALL, "rank": 16, "kept": "bf16"},
    "LoRA q+v r4": {"lanes": 1, "targets": QV, "rank": 4, "kept": "bf16"},
    "8 lanes": {"lanes": 8, "targets": ALL, "rank": 16, "kept": "bf16"},
    "24 lanes": {"lanes": 24, "targets": QV, "rank": 8, "kept": "bf16"},
    "NF4": {"lanes": 1, "targets": ALL, "rank": 16, "kept": "nf4"},
    "NF4, 8 lanes": {"lanes": 8, "targets": QV, "rank": 8, "kept": "nf4"},
    "FT": {"moments": "fp32"},
    "FT bf16": {"moments": "bf16"},
    "FT 8bit": {"moments": "8bit"},
    "FT 8bit 24bit": {"moments": "8bit", "weights": "24bit"},
}
# Of batch 8 unless it is named. Rows of XLSum are 20 to 30 times as long: fewer kinds fit.
WORKS = {
    "jnli": list(KINDS),
    "jnli, batch 32": ["LoRA", "8 lanes", "NF4", "FT 8bit"],
    "xlsum": ["LoRA", "LoRA q+v r4", "NF4", "FT", "FT 8bit"],
    "xlsum, batch 2": ["LoRA", "8 lanes", "NF4", "FT bf16"],
}
STEPS = 12
# Beyond a card of 141 GB, or at its edge: another way would be taken.
TOO_LARGE = {("6.7b", "xlsum", "FT"), ("6.7b", "xlsum, batch 2", "8 lanes")}


def cases(layout: str) -> list[tuple[str, str, str, str]]:
    """(size, layout, rows, kind) of all of one layout: over one model in bf16, then over it in 4
    bits, then those that need a new one each."""
    wanted = [
        (size, layout, work, kind)
        for size in SIZES
        for work, kinds in WORKS.items()
        for kind in kinds
        if (size, work, kind) not in TOO_LARGE
    ]
    return sorted(wanted, key=lambda case: (list(SIZES).index(case[0]), _turn(case[3])))


def _turn(kind: str) -> int:
    return {"bf16": 0, "nf4": 1}.get(KINDS[kind].get("kept", ""), 2)


def train_of(work: str, rows: int, kind: dict[str, Any]) -> TrainConfig:
    batch = int(work.rpartition("batch ")[2]) if "batch" in work else BATCH
    given = {name: value for name, value in kind.items() if name in ("moments", "weights")}
    return TrainConfig(learning_rate=1e-4, epochs=STEPS * batch / rows, batch=batch, **given)


def model_for(size: str, layout: str, name: str, held: list[Any]) -> tuple[Any, Sizes]:
    """The model of a case and its sizes; `held` keeps the frozen one for the next case."""
    kept = KINDS[name].get("kept")
    key = (size, layout, kept)
    if kept is not None and held and held[0] == key:
        return held[1], held[2]
    if kept == "nf4" and held and held[0] == (size, layout, "bf16"):
        model, sizes = held[1], held[2]
        detach(model)
    else:
        held.clear()
        gc.collect()
        torch.cuda.empty_cache()
        model = build(size, layout, torch.float32 if kept is None else torch.bfloat16)
        sizes = sizes_of(model)
    if kept == "nf4":
        quantise_layers(model, DEVICE, torch.bfloat16)
    held[:] = [] if kept is None else [key, model, sizes]
    return model, sizes


def measure(size: str, layout: str, work: str, name: str, held: list[Any]) -> dict[str, Any]:
    """One case: sizes, the largest backward pass, and what was reserved."""
    kind, rows = KINDS[name], make_rows(work.partition(",")[0])
    train, frozen = train_of(work, len(rows), kind), "lanes" in kind
    model, sizes = model_for(size, layout, name, held)
    lanes, trained, adapter = [], "fp32", 0
    if frozen:
        detach(model)
        wanted = LoraConfig(targets=kind["targets"], rank=kind["rank"])
        attached = attach_lanes(model, [(wanted, seed) for seed in range(kind["lanes"])])
        for number, one in enumerate(attached):
            own = train.model_copy(update={"seed": number})
            lanes.append(Lane(f"{number}", one.parameters, own, len(rows), moves=OneVector(one)))
        adapter = lanes[0].num_trainable
    else:
        moves, trained = FullWeights(model, train, halves=True), "fp32 (bf16 + int16)"
        lanes.append(Lane("FT", dict(model.named_parameters()), train, len(rows), moves=moves))
    kept = kind.get("kept", "fp32")
    numerics = Numerics(compute="bf16", base=kept, trained=trained)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    made = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with open_step(model, lanes, rows, pad_id=0, device=DEVICE, numerics=numerics) as step:
        opened = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
        seconds = time.perf_counter() - start
        results = fit(step, lanes, DEVICE, folders=[None] * len(lanes))
        cost, how = results[0].cost, step.kind
    reserved = max(opened[0], torch.cuda.max_memory_reserved())
    return {
        "sizes": asdict(sizes),
        "load": asdict(load_of(rows, [lane.config for lane in lanes])),
        "adapter": adapter,
        "targets": kind.get("targets", ""),
        "train": {key: getattr(train, key) for key in ("moments", "weights", "batch")},
        "kept": kept,
        "made_gib": gib(made),
        "allocated_gib": gib(max(opened[1], torch.cuda.max_memory_allocated())),
        "reserved_gib": gib(reserved),
        "recorded_gib": gib(cost.peak_reserved_bytes or 0),
        "step": how,
        "open_s": round(seconds, 1),
        "step_ms": round(1000 * (cost.step_s_median or 0) * len(lanes), 2),
    }


def foretold(case: dict[str, Any]) -> Ledger:
    """The ledger of a measured case."""
    sizes, load = Sizes(**case["sizes"]), Load(**case["load"])
    if case["adapter"]:
        words = sorted(target_names(case["targets"], LLAMA if sizes.glu else GPT2))
        reads = frozenset(ledger.READ_BY[word] for word in words if word in ledger.READ_BY)
        return ledger.ledger_of_adapters(sizes, case["kept"], case["adapter"], reads, load)
    train = TrainConfig(learning_rate=1.0, **case["train"])
    return ledger.ledger_in_full(sizes, train, replace(load, by_layer="by layer" in case["step"]))


def run(out: Path, layout: str, limit_s: float, skipped: list[str]) -> None:
    """Every case of the layout but those that `out` holds (a failed one is tried again)."""
    start, held, call = time.perf_counter(), list[Any](), this_call()
    kept: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cases": {}}
    for case in cases(layout):
        if any(f"{case[0]} {case[3]}".startswith(start_of) for start_of in skipped):
            continue
        if time.perf_counter() - start > limit_s:
            print("no time left for", case)
            break
        began, name = time.perf_counter(), " · ".join(case)
        if "reserved_gib" in kept["cases"].get(name, {}):
            continue
        try:
            result = measure(*case, held)
        except (torch.OutOfMemoryError, DoesNotFit) as full:
            result = {"failed": f"{type(full).__name__}: {str(full).splitlines()[0][:160]}"}
        gc.collect()
        torch.cuda.empty_cache()
        kept["cases"][name] = {"call": call, **result}
        out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shown = {key: value for key, value in result.items() if key not in ("sizes", "load")}
        print(f"{time.perf_counter() - began:.1f} s", name, shown, flush=True)


def halves(cases: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the cases that the factors are fitted on, the others): every second one, in the order of
    their names."""
    named = sorted((name, case) for name, case in cases.items() if "failed" not in case)
    return dict(named[::2]), dict(named[1::2])


def errors(cases: dict[str, Any]) -> dict[str, float]:
    """What is foretold over what was measured, less one."""
    return {
        name: foretold(case).total / 2**30 / case["reserved_gib"] - 1
        for name, case in cases.items()
    }


def fit_factors(cases: dict[str, Any]) -> dict[str, float]:
    """The workspace (bytes, and share of activations and logits) with the least squares of relative
    errors over the first half."""
    first, _ = halves(cases)
    left, right = [], []
    for case in first.values():
        held, measured = foretold(case), case["reserved_gib"] * 2**30
        rows = held.activations + held.logits
        left.append([1 / measured, rows / measured])
        right.append(1 - (held.fixed + rows) / measured)
    size, share = np.linalg.lstsq(np.array(left), np.array(right), rcond=None)[0]
    return {"bytes": float(f"{size:.2g}"), "share": round(float(share), 3)}


def table(cases: dict[str, Any]) -> str:
    fitted, unseen = (errors(half) for half in halves(cases))
    (most, mean), (most_fitted, mean_fitted) = (
        (max(map(abs, half.values())), float(np.mean([*map(abs, half.values())])))
        for half in (unseen, fitted)
    )
    lines = [
        "# Memory: foretold and measured",
        "",
        f"{len(fitted) + len(unseen)} cases; the workspace's two factors (`train/ledger`) were "
        f"fitted on {len(fitted)} of them (largest error {most_fitted:.1%}, mean "
        f"{mean_fitted:.1%}). On the {len(unseen)} others the largest error is {most:.1%}, the "
        f"mean {mean:.1%}. Written by `benchmarks/memory.py --table`; how each number is made "
        "stands in the script.",
        "",
        "Calls: " + "; ".join(sorted({case["call"] for case in cases.values()})) + ".",
        "",
        "| case | reserved GiB | foretold | error | | step |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        if "failed" in case:
            lines.append(f"| {name} | {case['failed'][:80]} | | | | |")
            continue
        error = fitted.get(name, unseen.get(name, 0.0))
        way = case["step"].removeprefix("cuda_graph").strip(", ")
        lines.append(
            f"| {name} | {case['reserved_gib']:.2f} | {foretold(case).total / 2**30:.2f} | "
            f"{error:+.1%} | {'fitted' if name in fitted else 'unseen'} | {way} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layout", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--limit-s", type=float, default=500)
    parser.add_argument("--skip", nargs="*", default=[], help="cases whose “size kind” begins so")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.fit or args.table:
        cases = json.loads(args.out.read_text(encoding="utf-8"))["cases"]
        print(fit_factors(cases) if args.fit else table(cases))
        return
    run(args.out, args.layout, args.limit_s, args.skip)


if __name__ == "__main__":
    main()
