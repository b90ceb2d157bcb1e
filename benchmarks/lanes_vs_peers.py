"""A whole grid in one pass against peft one run after another: time of a step for each adapter, in
one run on one CUDA device.

    python benchmarks/lanes_vs_peers.py --out OUT.json                  about 4 minutes on an H100
    python benchmarks/lanes_vs_peers.py --out OUT.json --lanes 24 --steps 30 --only 1b:jnli
    python benchmarks/lanes_vs_peers.py --out OUT.json --note "what changed"
        (a run is added to the list of all runs in OUT.json)

By wall clock as well (`wall`): the 24 runs of so many steps, opening, compiling and recording
included, as lanes; and one after another, each opened anew in the same process, by our own step
(three of them timed, the last two taken for all).

The lanes are the paper's LoRA grid without its epochs (which are checkpoints of one run): 4
learning rates × 2 sets of targets × 3 ranks = 24. Models, rows and peers are those of
`step_vs_peers.py`. peft is timed on both sets of targets; a grid costs it their mean. Every peer's
loss of step 1 must equal every lane's: adapters start at zero.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from step_vs_peers import (
    BATCH,
    DEVICE,
    SIZES,
    build,
    floor_ms,
    gib,
    make_rows,
    peer,
    products_ms,
    settings,
    spread,
    where_the_time_goes,
)

from tsugiki.config.run import LoraConfig, RunConfig
from tsugiki.model.lora import attach_lanes, detach
from tsugiki.model.numerics import Numerics
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.memory import lane_bytes
from tsugiki.train.open_step import open_step

RATES, TARGETS, RANKS = (1e-5, 2e-5, 5e-5, 2e-4), ("q+v", "q+k+v+o"), (4, 8, 16)
# As a study sorts its lanes.
GRID = sorted(itertools.product(RANKS[::-1], TARGETS[::-1], RATES), key=lambda cell: cell[1])


def ours(size: str, work: str, steps: int, lanes: int) -> dict[str, Any]:
    """`lanes` cells of the grid (round and round with other seeds beyond 24) in one pass."""
    rows = make_rows(work)
    model = build(size, "llama")
    numerics = Numerics(compute="bf16", base="bf16", trained="fp32")
    asked = [
        (
            LoraConfig(targets=words, rank=rank),
            settings(steps * BATCH / len(rows), step="cuda_graph"),
        )
        for rank, words, _ in (GRID * 9)[:lanes]
    ]
    asked = [
        (lora, train.model_copy(update={"learning_rate": GRID[number % 24][2]}))
        for number, (lora, train) in enumerate(asked)
    ]
    configs = [
        RunConfig(model={"path": "none"}, task={"name": "none"}, lora=lora, train=train)
        for lora, train in asked
    ]
    foretold = lane_bytes(model, configs, BATCH, rows) * lanes
    made = attach_lanes(model, [(lora, train.seed) for lora, train in asked])
    group = [
        Lane(f"lane {n}", one.parameters, train, len(rows), moves=OneVector(one))
        for n, (one, (_, train)) in enumerate(zip(made, asked, strict=True))
    ]
    start = time.perf_counter()
    with open_step(model, group, rows, pad_id=0, device=DEVICE, numerics=numerics) as opened:
        first = [one.loss.item() for one in opened(group)]
        first_step_s = time.perf_counter() - start
        results = fit(opened, group, DEVICE, folders=[None] * lanes)
        for lane in group:
            lane.step = 0
        profile = where_the_time_goes(opened, group)
    history = results[0].history
    tokens = round(lanes * statistics.fmean(history.step_tokens))
    detach(model)
    del opened
    gc.collect()
    torch.cuda.empty_cache()
    times = spread(
        [1000 * lanes * s for s in history.step_s[5:]],
        [lanes * count for count in history.step_tokens[5:]],
    )
    return {
        "lanes": lanes,
        "first_loss": statistics.fmean(first),
        "first_losses_spread": max(first) - min(first),
        "first_step_s": round(first_step_s, 2),
        **times,
        "ms_per_adapter_step": round(times["ms_late"] / lanes, 3),
        "peak_gib": gib(results[0].cost.peak_allocated_bytes or 0),
        "foretold_gib": gib(foretold),
        "floor_ms": floor_ms(size, "llama", tokens),
        "products_ms": products_ms(model, tokens),
        "profile": profile,
    }


def wall_clock(size: str, work: str, steps: int, lanes: int) -> dict[str, Any]:
    """Seconds that `lanes` runs of so many steps take, together and one after another."""
    rows = make_rows(work)
    model = build(size, "llama")
    numerics = Numerics(compute="bf16", base="bf16", trained="fp32")
    train = settings(steps * BATCH / len(rows), step="cuda_graph")

    def course(asked: list[tuple[LoraConfig, int]]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        made = attach_lanes(model, asked)
        group = [
            Lane(f"lane {n}", one.parameters, train, len(rows), moves=OneVector(one))
            for n, one in enumerate(made)
        ]
        with open_step(model, group, rows, pad_id=0, device=DEVICE, numerics=numerics) as opened:
            fit(opened, group, DEVICE, folders=[None] * len(group))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        detach(model)
        gc.collect()
        torch.cuda.empty_cache()
        return seconds

    asked = [(LoraConfig(targets=words, rank=rank), 0) for rank, words, _ in (GRID * 9)[:lanes]]
    together = course(asked)
    alone = [course([one]) for one in (asked[0], asked[lanes // 2], asked[-1])]
    one = statistics.fmean(alone[1:])
    return {
        "lanes": lanes, "steps": steps, "together_s": round(together, 1), "alone_s": [round(one,
        1) for one in alone],
        "one_after_another_s": round(lanes * one, 1), "ratio": round(lanes * one / together, 2),
    }  # fmt: skip


def summarise(kept: dict[str, Any]) -> dict[str, Any]:
    """`ratio` compares late steps (when the peer has met its padded widths), `ratio_all_steps` the
    means of all but the first five."""
    peers = [
        one
        for name, one in kept["peers"].items()
        if "ms_late" in one and name in ("1b_jnli_peft", "1b_jnli_peft_qv")
    ]
    mine = kept["ours"].get("1b_jnli_24")
    if not mine or not peers:
        return {}
    peer_ms, peer_mean = (
        statistics.fmean(one[key] for one in peers) for key in ("ms_late", "ms_mean")
    )
    solo = kept["ours"].get("1b_jnli_1", {})
    against_solo = (
        {
            "solo_ms": solo["ms_late"],
            "ratio_solo": round(solo["ms_late"] / mine["ms_per_adapter_step"], 2),
        }
        if "ms_late" in solo
        else {}
    )
    strong = {
        name: one["ms_late"]
        for name, one in kept["peers"].items()
        if name.startswith("1b_jnli") and "ms_late" in one
    }
    best = min(strong, key=lambda name: strong[name])
    return {
        **against_solo, **kept.get("wall", {}), "strongest": best, "strongest_ms": strong[best],
        "ratio_strongest": round(strong[best] / mine["ms_per_adapter_step"], 2),
        "lanes": mine["lanes"], "ours_ms_per_adapter_step": mine["ms_per_adapter_step"],
        "peer": "peft, mean of its two sets of targets",
        "peer_ms_per_step": round(peer_ms, 3), "ratio": round(peer_ms / mine["ms_per_adapter_step"],
        2),
        "peer_ms_mean": round(peer_mean, 3),
        "ratio_all_steps": round(peer_mean * mine["lanes"] / mine["ms_mean"], 2),
        "peak_gib": mine["peak_gib"], "floor_ms": mine["floor_ms"],
        "products_ms": mine["products_ms"], "first_step_s": mine["first_step_s"],
    }  # fmt: skip


def entry(kept: dict[str, Any], note: str) -> dict[str, Any]:
    """A run as a line of the list of all runs; without the peers where they were not run."""
    summary, mine = kept.get("summary", {}), kept["ours"]["1b_jnli_24"]
    peers = {
        f"peer_ms_{name}": kept["peers"][key]["ms_late"]
        for name, key in (("qkvo", "1b_jnli_peft"), ("qv", "1b_jnli_peft_qv"))
        if key in kept["peers"]
    }
    ratios = {key: summary[key] for key in ("ratio", "ratio_all_steps") if key in summary}
    return {
        "version": note,
        "ours_ms_per_adapter_step": mine["ms_per_adapter_step"],
        **peers,
        **ratios,
        "products_ms": mine["products_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["1b:jnli"])
    parser.add_argument("--lanes", nargs="*", type=int, default=[24, 1, 8, 48])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer-steps", type=int, default=100)
    parser.add_argument("--peers", nargs="*", default=["peft", "peft_qv", "peft_packed_compiled"])
    parser.add_argument(
        "--wall-steps",
        type=int,
        default=300,
        help="steps of the runs that are timed by the clock (0: none)",
    )
    parser.add_argument(
        "--note", default="", help="the version that was measured, for the list of all runs"
    )
    args = parser.parse_args()
    before: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    # One run is one card on one host: nothing of an earlier one is mixed in.
    kept: dict[str, Any] = {"ours": {}, "peers": {}, "runs": before.get("runs", [])}
    kept["about"] = {
        "device": torch.cuda.get_device_name(), "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "batch": BATCH, "sizes": SIZES,
        "grid": {"learning_rate": RATES, "targets": TARGETS, "rank": RANKS},
    }  # fmt: skip
    for size, work in (pair.split(":") for pair in args.only):
        wanted = [(f"{size}_{work}_{lanes}", "ours", lanes) for lanes in args.lanes] + [
            (f"{size}_{work}_{kind}", "peers", kind) for kind in args.peers
        ]
        for key, whose, what in wanted:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                kept[whose][key] = (
                    ours(size, work, args.steps, what)
                    if whose == "ours"
                    else peer(size, "llama", work, args.peer_steps, what)
                )
            except (torch.OutOfMemoryError, RuntimeError) as failure:
                kept[whose][key] = {
                    "failed": f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
                }
            print(key, {k: v for k, v in kept[whose][key].items() if k != "times_ms"}, flush=True)
            kept["summary"] = summarise(kept)
            args.out.write_text(
                json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        if args.wall_steps:
            kept["wall"] = {
                f"wall_{name}": value
                for name, value in wall_clock(size, work, args.wall_steps, 24).items()
            }
            kept["summary"] = summarise(kept)
            print(kept["wall"], flush=True)
        losses = [
            one["first_loss"]
            for whose in ("ours", "peers")
            for name, one in kept[whose].items()
            if name.startswith(f"{size}_{work}_") and "first_loss" in one
        ]
        assert max(losses) - min(losses) < 0.01 * min(losses), (
            f"{size}:{work}: losses of step 1 differ ({losses}): not the same work"
        )
    if "ms_per_adapter_step" in kept["ours"].get("1b_jnli_24", {}):
        kept["runs"].append(entry(kept, args.note))
        args.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
