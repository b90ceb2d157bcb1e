"""Uses a finished run: answers to one's own text, and the adapter as a PEFT folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsugiki.data.prompts import answer_text, pad_id_of, prompt_ids_of
from tsugiki.errors import ModelError
from tsugiki.model.export import export_adapter
from tsugiki.model.lora import grafted_of
from tsugiki.score.predict import PLAIN_BATCH, generate_ids
from tsugiki.study.finished import load_trained
from tsugiki.study.store import RunRecord


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
    eos = tokenizer.eos_token_id
    pad = pad_id_of(tokenizer)
    batch = record.config.score.batch or PLAIN_BATCH
    answers: list[list[int]] = []
    with base.numerics.autocast(base.device):
        for start in range(0, len(ids), batch):
            answers += generate_ids(base.model, ids[start : start + batch], max_new_tokens=max_new_tokens, eos_id=eos, pad_id=pad)
    return [answer_text(tokenizer, prompt, [i for i in answer if i != eos]) for prompt, answer in zip(ids, answers, strict=True)]


def export_run(record: RunRecord, folder: Path) -> None:
    """Writes the run's adapter for peft. Raises `ModelError` for a full fine-tuning run: it has no adapter."""
    if record.config.lora is None:
        raise ModelError(f"{record.folder}: full fine-tuning has no adapter to export")
    base = load_trained(record)
    export_adapter(grafted_of(base.model), folder, record.config.model.path)
