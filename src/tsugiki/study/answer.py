"""Uses a finished run: answers to one's own text, the adapter as a PEFT folder, the merged model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from tsugiki.data.prompts import answer_text, ending_of, pad_id_of, prompt_ids_of
from tsugiki.data.tasks import CHAT, load_task
from tsugiki.errors import ModelError
from tsugiki.model.export import export_adapter, merge_adapter, refuse_filled
from tsugiki.model.lora import grafted_of
from tsugiki.score.evaluate import evaluate
from tsugiki.score.predict import PLAIN_BATCH, generate_ids
from tsugiki.study.finished import load_trained
from tsugiki.study.inputs import tokens_of
from tsugiki.study.store import RunRecord

Stored = Literal["fp32", "bf16", "fp16"]
STORED = get_args(Stored)


def answer_texts(record: RunRecord, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy answers to prompts as they are: no template is added."""
    base = load_trained(record)
    tokenizer = base.tokenizer
    ids = [prompt_ids_of(tokenizer, prompt) for prompt in prompts]
    for prompt, one in zip(prompts, ids, strict=True):
        if not one or len(one) + max_new_tokens > base.max_positions:
            raise ModelError(
                f"prompt “{prompt[:30]}”: has {len(one)} tokens; from 1 to {base.max_positions - max_new_tokens} fit beside {max_new_tokens} new ones"
            )
    pad, stops = pad_id_of(tokenizer), ending_of(tokenizer, chat=record.config.task.format == CHAT, stops=base.stops).stops
    batch = record.config.score.batch or PLAIN_BATCH
    answers: list[list[int]] = []
    with base.numerics.autocast(base.device):
        for start in range(0, len(ids), batch):
            answers += generate_ids(base.model, ids[start : start + batch], max_new_tokens=max_new_tokens, stops=stops, pad_id=pad)
    return [answer_text(tokenizer, prompt, answer[:-1] if answer[-1:] and answer[-1] in stops else answer) for prompt, answer in zip(ids, answers, strict=True)]


def export_run(record: RunRecord, folder: Path) -> None:
    """Writes the run's adapter for peft. Raises `ModelError` for a full fine-tuning run: it has no adapter."""
    if record.config.method == "full":
        raise ModelError(f"{record.folder}: full fine-tuning has no adapter to export. Write the whole model with --merge")
    base = load_trained(record)
    export_adapter(grafted_of(base.model), folder, record.config.model.path)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What the merge gate saw: scores of the same rows of validation before and after, answers that changed, what rounding took."""

    rows: int
    score: str
    before: float
    after: float
    changed: int
    lost: float
    stored_before: str
    stored_after: str


def export_merged(record: RunRecord, folder: Path, stored: Stored, *, rows: int = 200, tolerance: float = 0.5, answers: float = 2.0) -> Merged:
    """Writes the trained model as an ordinary model folder, adapters added to the weights, unless that changes what it does.

    The gate: the first `rows` of validation are answered before and after; the main score may move by `tolerance` points of
    100, and `answers` percent of the answers may change.

    Raises:
        ModelError: the folder holds something already, or the gate is not passed: nothing is written then.
    """
    folder = folder.resolve()
    refuse_filled(folder)
    if folder == Path.cwd():
        raise ModelError(f"{folder}: is the current folder. Name a new one")
    base, config = load_trained(record), record.config
    task = load_task(config.task)
    sample = tokens_of(base, task, config, "validation")[:rows]
    before = evaluate(base, task.spec, "validation", sample, config.score)
    dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[stored])
    lost = merge_adapter(base.model, dtype)
    after = evaluate(base, task.spec, "validation", sample, config.score)
    changed = sum(one.answer != other.answer for one, other in zip(before.predictions, after.predictions, strict=True))
    seen = Merged(
        rows=len(sample), score=before.main.name, before=before.main.value, after=after.main.value, changed=changed, lost=lost,
        stored_before=base.numerics.base, stored_after=stored,
    )  # fmt: skip
    moved = 100 * abs(seen.after - seen.before)
    if moved > tolerance or 100 * changed > answers * len(sample):
        raise ModelError(
            f"{record.folder}: merged into {stored} weights it is another model: {seen.score} {seen.before:.4f} → {seen.after:.4f}, {changed} of "
            f"{len(sample)} answers changed, {lost:.1%} of the adapter lost to rounding (allowed: {tolerance:g} points, {answers:g} % of the answers). "
            "Nothing was written. Try --dtype fp32"
        )
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        base.model.save_pretrained(draft)
        base.tokenizer.save_pretrained(draft)
        (draft / "merged.json").write_text(json.dumps({**asdict(seen), "run": record.folder.name}, indent=1), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except OSError as broken:
        raise ModelError(f"{folder}: cannot be written: {broken.strerror}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return seen
