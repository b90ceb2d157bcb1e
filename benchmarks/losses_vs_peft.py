"""Fifty losses on real rows: the captured step, the plain step and peft from the same adapter; and
the answers of both decoders.

    python benchmarks/losses_vs_peft.py --model FOLDER --data DIR --out OUT.json

JCommonsenseQA, batch 8, LoRA on q+k+v+o of rank 16. The plain step runs twice: on the GPU in bf16,
and on the CPU in fp32 over the same bf16-stored base, which tells how large bf16's noise is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tsugiki.config.run import LoraConfig, ModelChoice, ScoreConfig, TaskChoice, TrainConfig
from tsugiki.data.batch import Order, collate
from tsugiki.data.prompts import Tokens, pad_id_of, tokenize
from tsugiki.data.tasks import load_task
from tsugiki.model.export import export_adapter
from tsugiki.model.loading import Base, find_base, load_base
from tsugiki.model.lora import attach, detach
from tsugiki.model.numerics import Numerics
from tsugiki.score.predict import predict
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.open_step import open_step

STEPS, BATCH = 50, 8
LORA = LoraConfig(targets="q+k+v+o", rank=16, alpha=32)


def settings(step: str) -> TrainConfig:
    return TrainConfig(learning_rate=5e-4, epochs=1, batch=BATCH, step=step, seed=0)


def ours(
    base: Base, rows: list[Tokens], step: str, device: torch.device, numerics: Numerics
) -> list[float]:
    grafted = attach(base.model.to(device), LORA, seed=0)
    lane = Lane("LoRA", grafted.parameters, settings(step), len(rows), moves=OneVector(grafted))
    with open_step(
        base.model, [lane], rows, pad_id=pad_id_of(base.tokenizer), device=device, numerics=numerics
    ) as opened:
        return fit(opened, [lane], device, folders=[None])[0].history.loss


def theirs(base: Base, rows: list[Tokens], folder: str) -> list[float]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(base.model, folder, is_trainable=True)
    model.train()
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=5e-4, weight_decay=0.0)
    order = Order(num_rows=len(rows), batch=BATCH, seed=0)
    losses = []
    for number in range(STEPS):
        numbers = order.rows_of(number)
        batch = collate([rows[n] for n in numbers], numbers, pad_id_of(base.tokenizer)).to(
            base.device
        )
        with (
            torch.autocast("cuda", torch.bfloat16) if base.device.type == "cuda" else nullcontext()
        ):
            loss = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with jcommonsenseqa/")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = load_base(find_base(ModelChoice(path=str(args.model)), "lora", "auto"))
    task = load_task(TaskChoice(name="jcommonsenseqa", data_dir=str(args.data)))
    rows = tokenize(base.tokenizer, task, task.examples["train"][: STEPS * BATCH], 512)
    runs: dict[str, Any] = {"plain": ours(base, rows, "eager", base.device, base.numerics)}
    with tempfile.TemporaryDirectory() as folder:
        detach(base.model)
        export_adapter(attach(base.model, LORA, seed=0), Path(folder), str(args.model))
        detach(base.model)
        answers = {}
        if base.device.type == "cuda":
            runs["cuda_graph"] = ours(base, rows, "cuda_graph", base.device, base.numerics)
            detach(base.model)
            runs["cuda_graph again"] = ours(base, rows, "cuda_graph", base.device, base.numerics)
            validation = tokenize(base.tokenizer, task, task.examples["validation"], 512)
            for kind in ("eager", "cuda_graph"):
                start = time.perf_counter()
                made = predict(
                    base.model,
                    base.tokenizer,
                    validation,
                    max_new_tokens=32,
                    config=ScoreConfig(decode=kind),
                    numerics=base.numerics,
                )
                answers[kind] = {
                    "seconds": round(time.perf_counter() - start, 2),
                    "answers": [one.answer for one in made],
                }
            detach(base.model)
        runs["peft"] = theirs(base, rows, folder)
    fp32 = load_base(base.source)
    fp32.model.float()
    runs["plain, CPU in fp32"] = ours(
        fp32,
        rows,
        "eager",
        torch.device("cpu"),
        Numerics(compute="fp32", base="fp32", trained="fp32"),
    )
    reference = runs["plain"]
    result = {
        "about": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
        },
        "model_sha256": base.source.checksum,
        "n": STEPS,
        "largest_relative_difference_from_plain": {
            name: max(
                abs(one - other) / other for one, other in zip(losses, reference, strict=True)
            )
            for name, losses in runs.items()
        },
        "losses": runs,
    }
    if answers:
        flips = sum(
            one != other
            for one, other in zip(
                answers["eager"]["answers"], answers["cuda_graph"]["answers"], strict=True
            )
        )
        result["decoding"] = {
            "n": len(answers["eager"]["answers"]),
            "answers_that_differ": flips,
            "seconds": {k: v["seconds"] for k, v in answers.items()},
        }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "losses"}, indent=1))


if __name__ == "__main__":
    main()
