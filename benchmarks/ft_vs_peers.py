"""Full fine-tuning, ours against the peers, in one run on one CUDA device: same weights, rows,
batch, masked prompts, gradients clipped at a norm of 1.

    python benchmarks/ft_vs_peers.py --out OUT.json              (about ten minutes on one card)
    python benchmarks/ft_vs_peers.py --out OUT.json --only 6.7b_jnli --cases ours_8bit
    python benchmarks/ft_vs_peers.py --out OUT.json --table > OUT.md      (measures nothing)

Models, rows and padding are those of step_vs_peers.py. Ours are timed as the engine times a run;
`at most N GiB` caps what the process may reserve, as on a smaller card: the step that is taken then
is the one that fits, and the cap is there from before the model is loaded. Peers are an eager loop
over transformers in pure bf16 without a needless attention mask, padded to 16s: PyTorch's fused
AdamW (also with its layers compiled), FlashOptim's AdamW with 24 bits a weight and 8-bit moments
(also releasing gradients in the backward pass, which then are not clipped), torchao's 8-bit AdamW
with stochastic rounding. Long rows at 6.7B: all with layers computed twice where they do not fit.
Every loss of step 1 must agree. `products` are the matmuls of one step (forward, input and weight
gradients) back to back in one CUDA graph, in the same call: no step over this library is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.step_vs_peers import (
    BATCH,
    DEVICE,
    SIZES,
    VOCAB,
    build,
    eager_steps,
    gib,
    make_rows,
    settings,
    spread,
    this_call,
    where_the_time_goes,
)

from tsugiki.fast.cuda_graphs import GraphCapturer
from tsugiki.model.numerics import Numerics
from tsugiki.train.engine import fit
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import open_step

BF16 = Numerics(compute="bf16", base="fp32", trained="fp32 (bf16 + int16)")
CARD = 79.0  # GiB of an H100 of 80 GB; a larger card is capped to it


@dataclass(frozen=True)
class Ours:
    """What of [train] is asked for, and a cap in GiB."""

    changes: dict[str, Any] = field(default_factory=dict)
    cap: float = CARD


EXACT = Ours()
EIGHT = {"moments": "8bit"}
SMALL = {"moments": "8bit", "weights": "24bit"}
CASES: dict[str, dict[str, Ours | str]] = {
    "1b_jnli": {
        "ours": EXACT,
        "ours, at most 18 GiB": Ours(cap=18),
        "ours bf16 moments, at most 11 GiB": Ours({"moments": "bf16"}, 11),
        "ours 8bit moments, at most 9.8 GiB": Ours(EIGHT, 9.8),
        "ours 8bit moments": Ours(EIGHT),
        "bf16 AdamW": "bf16",
        "bf16 AdamW, layers compiled": "bf16 compiled",
        "FlashAdamW 24-bit": "flash",
        "FlashAdamW 24-bit, released, not clipped": "flash released",
        "torchao AdamW8bit": "torchao",
    },
    "6.7b_jnli": {
        "ours 8bit moments, at most 64 GiB": Ours(EIGHT, 64),
        "ours 8bit moments, at most 45 GiB": Ours(EIGHT, 45),
        "ours 8bit moments 24bit weights, at most 36 GiB": Ours(SMALL, 36),
        "ours 8bit moments 24bit weights, last step's norm, at most 36 GiB": Ours(
            {**SMALL, "clip_from": "last_step"}, 36
        ),
        "bf16 AdamW": "bf16",
        "bf16 AdamW, layers compiled": "bf16 compiled",
        "FlashAdamW 24-bit": "flash",
        "FlashAdamW 24-bit, released, not clipped": "flash released",
        "torchao AdamW8bit": "torchao",
    },
    "1b_xlsum": {
        "ours": EXACT,
        "ours 8bit moments": Ours(EIGHT),
        "bf16 AdamW": "bf16",
        "bf16 AdamW, layers compiled": "bf16 compiled",
        "FlashAdamW 24-bit": "flash",
    },
    "6.7b_xlsum": {
        "ours 8bit moments": Ours(EIGHT),
        "bf16 AdamW": "bf16 checkpointing",
        "FlashAdamW 24-bit": "flash checkpointing",
    },
}
STEPS = {"jnli": 40, "xlsum": 16}


def ours(size: str, work: str, wanted: Ours, steps: int) -> dict[str, Any]:
    rows, model = make_rows(work), build(size, "llama", torch.float32)
    train = settings(steps * BATCH / len(rows), **wanted.changes)
    moves = FullWeights(model, train, halves=True)
    lane = Lane("FT", dict(model.named_parameters()), train, len(rows), moves=moves)
    loaded = torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with open_step(model, [lane], rows, pad_id=0, device=DEVICE, numerics=BF16) as opened:
        [first] = opened([lane])
        first_loss = first.loss.item()
        first_step_s = time.perf_counter() - start
        result = fit(opened, [lane], DEVICE, folders=[None])[0]
        history, cost, step = result.history, result.cost, opened.kind
        lane.step = 1
        profile = where_the_time_goes(opened, [lane], 2)
    return {
        "first_step_s": round(first_step_s, 2),
        "first_loss": first_loss,
        **spread([1000 * s for s in history.step_s[5:]], history.step_tokens[5:]),
        "peak_gib": gib(cost.peak_allocated_bytes or 0),
        "reserved_gib": gib(cost.peak_reserved_bytes or 0),
        "loading_reserved_gib": gib(loaded),
        "cap_gib": wanted.cap,
        "moments": train.moments,
        "weights": train.weights,
        "clip_from": train.clip_from,
        "step": step,
        "profile": profile,
    }


def peer(size: str, work: str, kind: str, steps: int) -> dict[str, Any]:
    words = set(kind.split())
    rows, model = make_rows(work), build(size, "llama")
    if "checkpointing" in words:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if "compiled" in words:
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    model.train()
    moved, optimizer = list(model.parameters()), _optimizer(model, words)
    released = "released" in words
    made = eager_steps(model, moved, optimizer, rows, steps, released=released)
    return {**made, "clipped": not released}


def _optimizer(model: Any, words: set[str]) -> Any:
    given: Any = {"lr": 1e-4, "weight_decay": 0.0}
    if "flash" in words:
        import flashoptim

        optimizer = flashoptim.FlashAdamW(model.parameters(), **given)
        if "released" in words:
            flashoptim.enable_gradient_release(model, optimizer)
        return optimizer
    if "torchao" in words:
        from torchao.optim import AdamW8bit

        return AdamW8bit(model.parameters(), bf16_stochastic_round=True, **given)
    return torch.optim.AdamW(model.parameters(), fused=True, **given)


def products_ms(size: str, tokens: int) -> float:
    """All matmuls of the layers in one step of full fine-tuning, and nothing else."""
    layers, width, _, mlp = SIZES[size]
    shapes = [(3 * width, width), (width, width), (2 * mlp, width), (width, mlp)]
    weights = [
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(layers)
        for shape in shapes
    ]
    inputs = {
        side: torch.randn(tokens, side, device=DEVICE, dtype=torch.bfloat16)
        for side in {side for shape in shapes for side in shape}
    }

    def work_once() -> None:
        for weight in weights:
            inputs[weight.shape[1]] @ weight.t()
        for weight in reversed(weights):
            inputs[weight.shape[0]] @ weight
            inputs[weight.shape[0]].t() @ inputs[weight.shape[1]]

    capturer = GraphCapturer(DEVICE)
    capturer.warm_up(work_once)
    graph = capturer.capture(work_once)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 3)


def run(of: Callable[[], dict[str, Any]], cap: float) -> dict[str, Any]:
    """A case; `held_gib` is what earlier ones left allocated (a peer's hooks hold their model):
    no part of what this one takes."""
    gc.collect()
    torch.cuda.empty_cache()
    held = gib(torch.cuda.memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    try:
        result = of()
        for name in ("peak_gib", "reserved_gib", "loading_reserved_gib"):
            if name in result:
                result[name] = round(result[name] - held, 2)
        return {**result, "held_gib": held}
    except Exception as failed:  # a peer that does not fit or is not installed is a result
        return {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:200]}"}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def summarise(cases: dict[str, Any]) -> dict[str, Any]:
    """For each work our fastest configuration (its weights exactly fp32) that clips by the exact
    norm, and the fastest peer that clips; `all`: each of ours beside the same peer."""
    summary = {}
    for key, results in cases.items():
        good = {name: result for name, result in results.items() if "ms_late" in result}
        mine = {name: result for name, result in good.items() if "moments" in result}
        rivals = {name: result for name, result in good.items() if result.get("clipped")}
        if not mine or not rivals:
            continue
        peer = min(rivals, key=lambda name: rivals[name]["ms_late"])

        def line(result: dict[str, Any], peer: str = peer, rivals: Any = rivals) -> dict[str, Any]:
            return {
                "ours_ms": result["ms_late"],
                "ours_peak_gib": result["reserved_gib"],
                "moments": result["moments"],
                "weights": result["weights"],
                "clip_from": result["clip_from"],
                "peer": peer,
                "peer_ms": rivals[peer]["ms_late"],
                "peer_peak_gib": rivals[peer]["reserved_gib"],
                "ratio": round(rivals[peer]["ms_late"] / result["ms_late"], 2),
                "over_products": round(result["ms_late"] / result["products_ms"], 2),
            }

        exact = [r for r in mine.values() if (r["weights"], r["clip_from"]) == ("fp32", "exact")]
        best = min(exact, key=lambda r: (r["moments"] != "fp32", r["ms_late"]))
        summary[key] = {**line(best), "all": {name: line(r) for name, r in mine.items()}}
    return summary


def table(kept: dict[str, Any]) -> str:
    lines = [
        "# Full fine-tuning against the peers",
        "",
        f"Batch {BATCH}, Llama layout with random weights of the paper's sizes "
        f"(vocabulary {VOCAB:,}, tied), row lengths of real data, gradients clipped at 1. Written "
        "by `benchmarks/ft_vs_peers.py --table`; how each number is made stands in the script.",
        "",
        "ms: median of the second half of the steps (quartiles) · GiB: peak reserved by the "
        "process while it trains (a peer: from its start) · products: ours over the step's own "
        "matmuls alone, in the same call.",
        "",
    ]
    for key, results in kept["cases"].items():
        lines += [
            f"## {key}",
            "",
            f"{kept['calls'][key]}. {kept.get('notes', {}).get(key, '')}",
            "",
        ]
        lines += [
            "| | ms (quartiles) | GiB | × products | tokens/s | n |",
            "|---|---|---|---|---|---|",
        ]
        for name, result in results.items():
            if "failed" in result:
                lines.append(f"| {name} | {result['failed'][:60]} | | | | |")
                continue
            low, high = result["ms_late_quartiles"]
            over = result["ms_late"] / result["products_ms"]
            step = (
                f" ({result['step'].removeprefix('cuda_graph').strip(', ')})"
                if result.get("step", "cuda_graph") != "cuda_graph"
                else ""
            )
            lines.append(
                f"| {name}{step} | {result['ms_late']:.1f} ({low:.1f}–{high:.1f}) | "
                f"{result['reserved_gib']:.1f} | {over:.2f} | {result['tokens_per_s_median']:,.0f} "
                f"| {result['n'] - result['n'] // 2} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--cases", nargs="*", help="names that start so")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    kept: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"cases": {}}
    if args.table:
        print(table(kept))
        return
    call = this_call()
    for key in args.only:
        size, work = key.split("_")
        steps = args.steps or STEPS[work]
        tokens = round(BATCH * statistics.fmean(map(len, make_rows(work))))
        alone = products_ms(size, tokens)
        for name, wanted in CASES[key].items():
            if args.cases and not any(name.startswith(start) for start in args.cases):
                continue
            start = time.perf_counter()
            cap = wanted.cap if isinstance(wanted, Ours) else CARD
            result = run(
                lambda s=size, w=work, a=wanted, n=steps: (  # type: ignore[misc]
                    ours(s, w, a, n) if isinstance(a, Ours) else peer(s, w, a, n)
                ),
                cap,
            )
            result |= {"products_ms": alone, "seconds": round(time.perf_counter() - start, 1)}
            kept["cases"].setdefault(key, {})[name] = result
            kept.setdefault("calls", {})[key] = call  # ours and peers of one work: in one call
            shown = {k: v for k, v in result.items() if k not in ("times_ms", "profile")}
            print(key, name, shown, result.get("profile", ""), flush=True)
            losses = [r["first_loss"] for r in kept["cases"][key].values() if "first_loss" in r]
            assert max(losses) < 1.01 * min(losses), f"{key}: not the same work: {losses}"
            kept["cases"] = {key: kept["cases"][key] for key in CASES if key in kept["cases"]}
            kept["summary"] = summarise(kept["cases"])
            text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
            args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
