"""What makes a LoRA score far below chance? One factor at a time, and the failure classes of the
answers while it trains.

    python -m benchmarks.lora_vs_ft.causes --model builtin --name 10M --task TASK.toml --split a
        --data DATA --out causes-10M-jcommonsenseqa.json

Two settings stand at either end: the paper's lowest (q+v, rank 4, α = r, 1e-5, constant rate) and
the recipe (`method = "lora"` alone). Of the first the cures are changed one by one, of the second
the faults are put in one by one. tsugiki makes none of the faults in data and arithmetic itself:
they are put in here (`FAULTS`), over its own engine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tsugiki.config.recipe import SCHEDULE, adapter_of, rate_of
from tsugiki.config.run import ModelChoice, RunConfig, ScoreConfig
from tsugiki.data.prompts import Tokens, answer_text, pad_id_of, prompt_ids_of, render
from tsugiki.data.tasks import Task, drawn, load_task
from tsugiki.model.loading import Base, find_base, load_base
from tsugiki.model.lora import detach, lanes_on
from tsugiki.model.width import width_of
from tsugiki.runs.answering import WRITES
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.methods import LORA
from tsugiki.score.choices import choose_all
from tsugiki.score.evaluate import Evaluation, evaluate_lanes, summarise
from tsugiki.score.metrics import per_example
from tsugiki.score.predict import Prediction, prediction_of
from tsugiki.score.rules import METRICS
from tsugiki.toml import parse
from tsugiki.train.engine import PausedLane, fit
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import open_step
from tsugiki.train.step import EagerStep

LOW: dict[str, Any] = {"targets": "q+v", "rank": 4, "learning_rate": 1e-5}
MOMENTS = (0.02, 0.1, 0.3, 0.6)  # shares of all steps after which validation is looked at
EAGER_STEPS = 400  # of a fault that the CUDA-graph step does not have


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One lane: what it is called here, and what of the run it changes."""

    name: str
    changes: dict[str, Any]


class Fp16:
    """Matmuls in fp16 without loss scaling, as a trainer's fp16 = True does without its scaler."""

    compute, base, trained = "fp16", "bf16", "fp32"

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.float16)


def no_end(rows: Sequence[Tokens], base: Base, task: Task) -> list[Tokens]:
    """The end of the answer is not trained: EOS left out, or masked because it is the padding."""
    return [replace(row, target_ids=row.target_ids[: -len(row.ending.ids)]) for row in rows]


def joined(rows: Sequence[Tokens], base: Base, task: Task) -> list[Tokens]:
    """Prompt and answer tokenised as one text, and split where the prompt alone would end."""
    made = []
    for row in rows:
        prompt = render(task.template, row.example)
        count = len(prompt_ids_of(base.tokenizer, prompt))
        ids = prompt_ids_of(base.tokenizer, prompt + row.example.target)
        if count >= len(ids):
            continue
        target = (*ids[count:], *row.ending.ids)
        made.append(replace(row, prompt_ids=tuple(ids[:count]), target_ids=target))
    return made


def whole_text(rows: Sequence[Tokens], base: Base, task: Task) -> list[Tokens]:
    """The loss is taken over the prompt too, not over the answer alone."""
    return [
        replace(row, prompt_ids=row.prompt_ids[:1], target_ids=row.prompt_ids[1:] + row.target_ids)
        for row in rows
    ]


def in_bf16(lane: Lane) -> None:
    """Adapters that are kept in bf16: rounded after every step."""
    whole = lane.move

    def move() -> torch.Tensor:
        norm = whole()
        for parameter in lane.moved:
            parameter.data.copy_(parameter.data.bfloat16())
        return norm

    lane.move = move  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[Sequence[Tokens], Base, Task], list[Tokens]]] = {
    "end not trained": no_end,
    "prompt and answer tokenised together": joined,
    "loss on the prompt too": whole_text,
}


def settings(width: int) -> list[Setting]:
    """The lanes of the pass without faults: the two ends, and one change each from them."""
    rate = rate_of("lora", width)
    recipe: dict[str, Any] = {**adapter_of(width), **SCHEDULE, "learning_rate": rate}
    few = {"epochs": 0.1}
    from_low = {
        "few steps": few,
        "α = 1": {"alpha": 1},
        "α = 16": {"alpha": 16},
        "warm-up 5 %": {"warmup": 0.05},
        "rate 2e-4": {"learning_rate": 2e-4},
        "the recipe's rate": {"learning_rate": rate},
        "all linear layers, rank 64": {"targets": "all-linear", "rank": 64},
    }
    from_recipe = {
        "rate 1e-5": {"learning_rate": 1e-5},
        "q+v, rank 4, same scale": {"targets": "q+v", "rank": 4, "alpha": 8},
        "no warm-up": {"warmup": 0.0},
        "constant rate": {"schedule": "constant"},
        "few steps": few,
        "four times the rate": {"learning_rate": 4 * rate},
    }
    return [
        Setting(name="lowest", changes=LOW),
        *(Setting(name=f"lowest; {k}", changes={**LOW, **v}) for k, v in from_low.items()),
        Setting(name="recipe", changes=recipe),
        *(Setting(name=f"recipe; {k}", changes={**recipe, **v}) for k, v in from_recipe.items()),
    ]


def config_of(args: argparse.Namespace, changes: dict[str, Any], format_: str) -> RunConfig:
    lora = {k: v for k, v in changes.items() if k in ("targets", "rank", "alpha")}
    train = {k: v for k, v in changes.items() if k not in lora}
    given = {
        "model": {"path": args.model},
        "task": {
            "name": args.task, "split": args.split, "data_dir": args.data, "format": format_,
            "train_rows": args.train_rows,
        },
        "lora": lora,
        "train": {"epochs": args.epochs, "batch": 8, "max_length": 1024, **train},
    }  # fmt: skip
    return parse(RunConfig, given, "causes")


def some_of(base: Base, task: Task, config: RunConfig, most: int) -> list[Tokens]:
    """Rows of validation, so many at most, drawn by a fixed seed."""
    rows = tokens_of(base, task, config, "validation")
    return list(drawn(rows, min(most, len(rows))))


class Campaign:
    """All passes over one model and one task."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, list[dict[str, Any]]()
        self.choice = ModelChoice(path=args.model)
        self.base = load_base(find_base(self.choice, "lora", "auto"))
        self.width = width_of(self.choice)

    def train(
        self,
        kind: str,
        some: Sequence[Setting],
        format_: str = "paper",
        changed: Callable[[Sequence[Tokens], Base, Task], list[Tokens]] | None = None,
        wrap: Callable[[Lane], None] | None = None,
        after: Callable[[int, Setting, list[Tokens], Task], None] | None = None,
        fp16: bool = False,
    ) -> None:
        """Trains the settings as lanes of one pass and keeps what validation answers, at some
        moments and at the end."""
        began, base = time.perf_counter(), self.base
        configs = [config_of(self.args, setting.changes, format_) for setting in some]
        task = load_task(configs[0].task)
        rows = tokens_of(base, task, configs[0], "train")
        validation = some_of(base, task, configs[0], self.args.rows)
        few = validation[: self.args.rows // 2]
        if changed is not None:
            rows = changed(rows, base, task)
        lanes = LORA.lanes(base, configs, len(rows))
        for lane in lanes:
            if wrap is not None:
                wrap(lane)
            if fp16:
                lane.steps = min(lane.steps, EAGER_STEPS)
            lane.callback_steps = frozenset(max(1, round(lane.steps * at)) for at in MOMENTS)
        step: Any

        def look(paused: Sequence[PausedLane]) -> None:
            with step.paused():
                for each in paused:
                    number = lanes.index(each.lane)
                    self.keep(kind, some[number], each.lane.step, task, few, number)

        pad = pad_id_of(base.tokenizer)
        opened: AbstractContextManager[Any] = open_step(
            base.model, lanes, rows, pad_id=pad, device=base.device, numerics=base.numerics
        )
        if fp16:
            from contextlib import nullcontext

            numerics: Any = Fp16()
            opened = nullcontext(EagerStep(base.model, rows, pad, base.device, numerics))
        with opened as step:
            results = fit(step, lanes, base.device, folders=[None] * len(lanes), callback=look)
        for number, (setting, result) in enumerate(zip(some, results, strict=True)):
            if result.failure is not None:
                self.out.append({"kind": kind, "setting": setting.name, "failure": result.failure})
                continue
            self.keep(kind, setting, lanes[number].step, task, validation, number, last=True)
            if after is not None:
                after(number, setting, validation, task)
        detach(base.model)
        print(
            f"{self.args.name} {task.name} {kind}: {time.perf_counter() - began:.0f} s", flush=True
        )
        self.write()

    def keep(
        self, kind: str, setting: Setting, step: int, task: Task, rows: list[Tokens], number: int,
        *, last: bool = False,
    ) -> None:  # fmt: skip
        """The answers of one lane by now: score, failure classes; at the end also what the
        candidates alone allow, and the loss."""
        [seen] = evaluate_lanes(
            self.base, task.spec, "validation", rows, ScoreConfig(), lanes=[number]
        )
        entry = entry_of(kind, setting, step, seen)
        if last:
            entry["loss"] = WRITES.loss(self.base, rows, number)
            entry["changes"] = setting.changes
            if task.spec.closed:
                entry["among candidates"] = self.among(task, rows, number)
        self.out.append(entry)

    def among(self, task: Task, rows: list[Tokens], number: int) -> dict[str, float]:
        """Scores where only candidates may be answered: generation among them, likelihood."""
        main = METRICS[task.spec.metric].main
        with lanes_on(self.base.model).only(number):
            chosen = choose_all(self.base.model, self.base.tokenizer, rows, self.base.numerics)
        targets = [row.example.target for row in rows]
        return {
            mode: sum(values := per_example(task.spec.metric, texts, targets)[main]) / len(values)
            for mode, texts in chosen.items()
        }

    def padded_on_the_right(
        self, number: int, setting: Setting, rows: list[Tokens], task: Task
    ) -> None:
        """The same adapter, asked in batches that are padded on the right."""
        with lanes_on(self.base.model).only(number):
            answers = answers_padded_right(self.base, rows, task.spec.max_new_tokens)
        seen = summarise(task.spec, "validation", answers, 0.0)
        step = self.out[-1]["step"]
        self.out.append(entry_of("asked with padding on the right", setting, step, seen))

    def write(self) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        content = {
            "model": self.args.name,
            "task": Path(self.args.task).stem,
            "split": self.args.split,
            "device": device,
            "torch": torch.__version__,
            "rows": self.args.rows,
            "train_rows": self.args.train_rows,
            "epochs": self.args.epochs,
            "seeds": 1,
            "entries": self.out,
        }
        Path(self.args.out).write_text(json.dumps(content, ensure_ascii=False, indent=1))


def entry_of(kind: str, setting: Setting, step: int, seen: Evaluation) -> dict[str, Any]:
    return {
        "kind": kind,
        "setting": setting.name,
        "step": step,
        "score": seen.main.value,
        "low": seen.main.low,
        "high": seen.main.high,
        "n": seen.main.n,
        "valid": seen.candidate_rate,
        "failures": {name: count for name, count in seen.failures.items() if count},
        "examples": [each.answer[:60] for each in seen.predictions[:3]],
    }


@torch.inference_mode()
def answers_padded_right(
    base: Base, rows: Sequence[Tokens], most: int, batch: int = 64
) -> list[Prediction]:
    """Greedy answers as a tokenizer's default padding makes them: the next token is read after the
    padding, and positions count through it."""
    pad, made = pad_id_of(base.tokenizer), list[Prediction]()
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        longest = max(len(row.prompt_ids) for row in some)
        ids = torch.full((len(some), longest), pad, device=base.device)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(some):
            ids[index, : len(row.prompt_ids)] = torch.tensor(row.prompt_ids, device=base.device)
            mask[index, : len(row.prompt_ids)] = 1
        for _ in range(most):
            with base.numerics.autocast(base.device):
                logits = base.model(input_ids=ids, attention_mask=mask).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        for row, said in zip(some, ids[:, longest:].tolist(), strict=True):
            end = next((i for i, token in enumerate(said) if token in row.ending.stops), None)
            answer = answer_text(base.tokenizer, row.prompt_ids, said[:end])
            made.append(prediction_of(row, answer, ended=end is not None))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "name", "task", "split", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=500, help="of validation, at the end")
    parser.add_argument("--train-rows", type=int, default=None)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument(
        "--ends", action="store_true", help="only the two ends, not what is between"
    )
    args = parser.parse_args()
    campaign = Campaign(args)
    every = settings(campaign.width)
    if args.ends:
        every = [setting for setting in every if setting.name in ("lowest", "recipe")]
    ends = [setting for setting in every if setting.name in ("lowest", "recipe")]
    campaign.train(
        "one setting at a time",
        every,
        after=lambda number, setting, rows, task: (
            campaign.padded_on_the_right(number, setting, rows, task) if setting in ends else None
        ),
    )
    for kind, changed in FAULTS.items():
        format_ = "plain" if changed is joined else "paper"
        if changed is joined:
            campaign.train("plain prompt, tokenised apart", ends, "plain")
        campaign.train(kind, ends, format_, changed)
    rounded = [s for s in every if s.name in ("lowest", "lowest; rate 2e-4", "recipe")]
    campaign.train("adapters in bf16", rounded, wrap=in_bf16)
    if campaign.base.device.type == "cuda":
        campaign.train("fp16 without loss scaling", ends, fp16=True)
    campaign.write()


if __name__ == "__main__":
    main()
