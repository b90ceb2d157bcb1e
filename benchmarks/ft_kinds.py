"""What full fine-tuning loses by keeping fewer bits: each kind of weights and moments against fp32,
same rows, same order, same rate.

    DATA=… MODEL=… python -m benchmarks.ft_kinds --out OUT.json [--jobs 6]     (minutes on one card)
    python -m benchmarks.ft_kinds --out OUT.json --table > OUT.md

Two models (the built-in one of 10 M parameters on sample_nli, a pre-trained GPT of 27 M in MODEL on
JCommonsenseQA in DATA), three rates, three seeds of the rows' order, at least 1,000 steps of eight
rows. Loss and score are those of validation after the last step. Each kind is compared with "fp32"
of the same model, rate and seed (nine pairs a model): mean and 95 % interval by t. Beside it the
standard deviation over the order seeds of "fp32" itself, which is what one run is uncertain by.
Not of the product: "bf16 AdamW", PyTorch's over bf16 weights and moments, the warning example.
"fp32 matmuls" computes everything in fp32, with PyTorch's AdamW, at the middle rate only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 moments": {"moments": "bf16"},
    "8bit moments": {"moments": "8bit"},
    "8bit moments, 24bit weights": {"moments": "8bit", "weights": "24bit"},
    "fp32, last step's norm": {"clip_from": "last_step"},
    "fp32 matmuls": {"precision": "fp32"},
    "bf16 AdamW": {},
}
EAGER = "fp32 matmuls"  # at one rate: it takes no CUDA graph
RATES, SEEDS = (3e-5, 1e-4, 3e-4), (0, 1, 2)
MODELS: dict[str, tuple[str, dict[str, Any], float]] = {
    "10M": ("builtin", {"name": "sample_nli"}, 5.4),
    "27M": ("MODEL", {"name": "jcommonsenseqa", "split": "official", "data_dir": "DATA"}, 1.0),
}


def work(model: str, seed: int, out: Path) -> None:
    """All kinds and rates of a model and a seed, one JSON a line."""
    import torch

    from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice
    from tsugiki.data.prompts import pad_id_of
    from tsugiki.data.tasks import load_task
    from tsugiki.model.loading import find_base, load_base
    from tsugiki.runs.answering import WRITES
    from tsugiki.runs.inputs import tokens_of
    from tsugiki.runs.methods import FULL
    from tsugiki.score.evaluate import evaluate
    from tsugiki.train.engine import fit
    from tsugiki.train.lane import Lane
    from tsugiki.train.open_step import open_step

    path, asked, epochs = MODELS[model]
    task_asked = {key: os.environ.get(str(value), value) for key, value in asked.items()}
    for kind, rate in itertools.product(KINDS, RATES):
        if kind == EAGER and rate != RATES[1]:
            continue
        train = {"learning_rate": rate, "epochs": epochs, "batch": 8, "schedule": "linear"}
        config = RunConfig(
            model=ModelChoice(path=os.environ.get(path, path)),
            task=TaskChoice(**task_asked),
            method="full",
            train={**train, "warmup": 0.05, "seed": seed, **KINDS[kind]},  # type: ignore[arg-type]
        )
        task = load_task(config.task)
        base = load_base(find_base(config.model, "full", config.train.precision))
        rows, validation = (tokens_of(base, task, config, p) for p in ("train", "validation"))
        if kind == "bf16 AdamW":
            base.model.to(torch.bfloat16)
            named = dict(base.model.named_parameters())
            lane = Lane("bf16", named, config.train, len(rows))
        else:
            [lane] = FULL.lanes(base, [config], len(rows))
        start = time.perf_counter()
        pad, device, numerics = pad_id_of(base.tokenizer), base.device, base.numerics
        with open_step(
            base.model, [lane], rows, pad_id=pad, device=device, numerics=numerics
        ) as step:
            fitted = fit(step, [lane], device, folders=[None])[0]
        seen = evaluate(base, task.spec, "validation", validation, config.score)
        line = {
            "model": model, "kind": kind, "rate": rate, "seed": seed, "steps": lane.steps,
            "loss": WRITES.loss(base, validation), "score": seen.main.value,
            "metric": seen.main.name,
            "n": len(validation), "train_loss": statistics.fmean(fitted.history.loss[-100:]),
            "failure": fitted.failure, "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each model and kind: differences to fp32, paired."""
    from scipy.stats import t

    of = {(r["model"], r["kind"], r["rate"], r["seed"]): r for r in runs}
    lines = []
    for model, kind in itertools.product(MODELS, KINDS):
        line: dict[str, Any] = {"model": model, "kind": kind}
        for key, scale in (("loss", 1.0), ("score", 100.0)):
            pairs = [
                scale * (run[key] - of[model, "fp32", rate, seed][key])
                for rate, seed in itertools.product(RATES, SEEDS)
                if (run := of.get((model, kind, rate, seed))) is not None
                and (model, "fp32", rate, seed) in of
            ]
            if len(pairs) < 2:
                continue
            half = t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
            mean = statistics.fmean(pairs)
            spread = [
                statistics.variance([scale * of[model, "fp32", rate, seed][key] for seed in SEEDS])
                for rate in RATES
            ]
            own = [scale * r[key] for r in runs if (r["model"], r["kind"]) == (model, kind)]
            line[key] = {
                "mean": statistics.fmean(own), "difference": mean, "low": mean - half,
                "high": mean + half, "pairs": len(pairs),
                "largest": max(map(abs, pairs)), "order_sd": statistics.fmean(spread) ** 0.5,
            }  # fmt: skip
        if "loss" in line:
            lines.append(line)
    return lines


def table(kept: dict[str, Any]) -> str:
    lines = [
        "# What fewer bits cost",
        "",
        f"{kept['call']}. Written by `python -m benchmarks.ft_kinds --table`; what was run stands "
        "in the script. Differences to fp32 weights and moments at the same rate and seed (nine "
        "pairs: n), with 95 % intervals by t; σ: standard deviation of fp32 over its order seeds.",
        "",
        "| model | kind | validation loss (nats a token) | σ | score (points) | σ | mean | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in kept["compared"]:
        loss, score = line["loss"], line["score"]
        same = line["kind"] == "fp32"
        cells = [
            "–" if same else f"{d['difference']:+.{p}f} [{d['low']:+.{p}f}, {d['high']:+.{p}f}]"
            for d, p in ((loss, 4), (score, 2))
        ]
        lines.append(
            f"| {line['model']} | {line['kind']} | {cells[0]} | {loss['order_sd']:.4f} | "
            f"{cells[1]} | {score['order_sd']:.2f} | {score['mean']:.1f} | {loss['pairs']} |"
        )
    runs = kept["runs"]
    steps = ", ".join(
        f"{model} {next(r['steps'] for r in runs if r['model'] == model):,} steps on "
        f"{MODELS[model][1]['name']}, n = {next(r['n'] for r in runs if r['model'] == model):,}"
        for model in MODELS
        if any(r["model"] == model for r in runs)
    )
    return "\n".join([*lines, "", f"{steps}; rates {', '.join(f'{r:g}' for r in RATES)}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--part", nargs=2, metavar=("MODEL", "SEED"), help="one worker's share")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return
    if args.part:
        work(args.part[0], int(args.part[1]), args.out)
        return
    import torch

    from tsugiki.train.meter import device_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = [(model, str(seed)) for seed in SEEDS for model in reversed(MODELS)]
    files = [args.out.with_name(f"{args.out.stem}-{model}-{seed}.jsonl") for model, seed in parts]
    for first in range(0, len(parts), args.jobs):
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ft_kinds", "--out", str(file), "--part", *part]
            )
            for part, file in list(zip(parts, files, strict=True))[first : first + args.jobs]
        ]
        for process in running:
            process.wait()
    runs = [json.loads(line) for file in files if file.exists() for line in file.open()]
    call = f"{device_name(device)}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}"
    kept = {"call": call, "compared": compared(runs), "runs": runs}
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for file in files:
        file.unlink(missing_ok=True)
    print(table(kept))


if __name__ == "__main__":
    main()
