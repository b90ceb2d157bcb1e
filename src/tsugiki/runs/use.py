"""Uses a finished run: answers to one's own text, the adapter as a PEFT folder, the merged
model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError

from tsugiki.data.prompts import answer_text, ending_of, pad_id_of, prompt_ids_of
from tsugiki.data.tasks import CHAT, load_task
from tsugiki.errors import ModelError, first_line
from tsugiki.files import new_folder, umask
from tsugiki.model.export import export_adapter, refuse_filled
from tsugiki.model.folder import (
    BUILTIN_NAME,
    is_quantised,
    read_settings,
    resolve,
    settings_files,
    weight_files,
)
from tsugiki.model.loading import Base
from tsugiki.model.lora import adapter_of
from tsugiki.model.merge import merge_adapter, store_frozen
from tsugiki.model.numerics import TORCH_NAMES
from tsugiki.model.quantise import dense_layers
from tsugiki.runs.card import card_of, usage_of
from tsugiki.runs.finished import load_trained, refuse_chooser
from tsugiki.runs.for_tools import ADAPTER, has_adapter, write_for_tool
from tsugiki.runs.inputs import task_of, tokens_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.evaluate import evaluate
from tsugiki.score.predict import EAGER_BATCH, generate_ids
from tsugiki.words import Message

Stored = Literal["fp32", "bf16", "fp16"]
STORED = get_args(Stored)
SLACK = 2**20  # bytes a file of weights may be larger: no tensor is cut in two


def answer_texts(record: RunRecord, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy answers to prompts as they are: no template is added."""
    return texts_of(load_trained(record), record, prompts, max_new_tokens)


def texts_of(
    base: Base, record: RunRecord, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """`answer_texts` of a model that is loaded."""
    tokenizer = base.tokenizer
    ids = [prompt_ids_of(tokenizer, prompt) for prompt in prompts]
    for prompt, each in zip(prompts, ids, strict=True):
        if not each or len(each) + max_new_tokens > base.max_positions:
            raise ModelError(
                f"prompt “{prompt[:30]}”: has {len(each)} tokens; from 1 to "
                f"{base.max_positions - max_new_tokens} fit beside {max_new_tokens} new ones"
            )
    chat = task_of(record).format == CHAT  # tasks of conversations name no format
    pad, stops = pad_id_of(tokenizer), ending_of(tokenizer, chat=chat, stops=base.stops).stops
    batch = record.config.score.batch or EAGER_BATCH
    answers: list[list[int]] = []
    with base.numerics.autocast(base.device):
        for start in range(0, len(ids), batch):
            answers += generate_ids(
                base.model,
                ids[start : start + batch],
                max_new_tokens=max_new_tokens,
                stops=stops,
                pad_id=pad,
            )
    return [
        answer_text(
            tokenizer, prompt, answer[:-1] if answer[-1:] and answer[-1] in stops else answer
        )
        for prompt, answer in zip(ids, answers, strict=True)
    ]


def other_ending(record: RunRecord, prompts: Sequence[str]) -> str | None:
    """What to tell of prompts that do not end as those of training do; None where all do."""
    refuse_chooser(record)
    task = task_of(record)
    if record.provenance.task is None or task.format == CHAT:
        return None
    tail = task.template.rpartition("}")[2].replace("{{", "{").replace("}}", "}")
    other = sum(not prompt.endswith(tail) for prompt in prompts)
    if not other:
        return None
    return Message("note.other_ending", other=other, texts=len(prompts), tail=tail)


def export_run(record: RunRecord, folder: Path) -> None:
    """Writes the run's adapter for peft, with a model card and how it is used (`runs/card`): all
    of it or nothing.

    Raises:
        RunError: an encoder's run is not exported.
        ModelError: a full fine-tuning run has no adapter; the folder holds something already, or
            cannot be written.
    """
    refuse_chooser(record)
    if method_of(record.config).moves_base:
        raise ModelError(
            f"{record.folder}: full fine-tuning has no adapter to export. Write the whole model "
            "with --merge"
        )
    if not method_of(record.config).tuned:
        raise ModelError(f"{record.folder}: the untouched base: there is nothing to export")
    folder = _new(folder)
    base, name = load_trained(record), _base_name(record)
    usage, adapter = usage_of(record, base, name), adapter_of(base.model)
    with _draft_of(folder) as draft:
        export_adapter(adapter, draft, name, record.config.model.revision)
        (draft / "tsugiki.json").write_text(usage.model_dump_json(indent=1) + "\n", "utf-8")
        (draft / "README.md").write_text(card_of(record, usage, adapter.config), "utf-8")


def export_for_tool(record: RunRecord, folder: Path, tool: str) -> None:
    """Writes what lm-evaluation-harness or flexeval scores the run's test part with
    (`runs/for_tools`), the adapter beside it. Raises as `export_run` does."""
    refuse_chooser(record)
    with _draft_of(_new(folder)) as draft:
        write_for_tool(record, draft, tool, _base_name(record))
        if has_adapter(record):
            export_run(record, draft / ADAPTER)


def _new(folder: Path) -> Path:
    """A folder that may be written. Raises `ModelError` for one that holds something, and for the
    current one, which would be put out from under the shell."""
    folder = folder.resolve()
    refuse_filled(folder)
    if folder == Path.cwd():
        raise ModelError(f"{folder}: is the current folder. Name a new one")
    return folder


@contextmanager
def _draft_of(folder: Path) -> Iterator[Path]:
    """A draft that becomes the folder, readable by others, when the block ends well. Raises
    `ModelError` where it cannot be written, or something was put there meanwhile."""
    try:
        with new_folder(folder) as draft:
            yield draft
            for path in draft.rglob("*.safetensors"):  # their owner's alone as they are saved
                path.chmod(0o666 & ~umask())
            refuse_filled(folder)
    except (OSError, SafetensorError) as broken:
        raise ModelError(f"{folder}: cannot be written: {first_line(broken)}") from None


def _base_name(record: RunRecord) -> str:
    """How an adapter names its base: the absolute path of a folder, so that peft finds it from
    anywhere; a Hub id as it is."""
    path = record.config.model.path
    return (
        str(resolve(record.config.model).resolve())
        if path == BUILTIN_NAME or Path(path).exists()
        else path
    )


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What the merge gate saw: scores of the same rows of validation before and after, answers
    that changed, what rounding took."""

    rows: int
    score: str
    before: float
    after: float
    changed: int
    lost: float
    stored_before: str
    stored_after: str
    forced: bool = False


def export_merged(
    record: RunRecord,
    folder: Path,
    stored: Stored,
    *,
    rows: int = 200,
    tolerance: float = 0.5,
    answers: float = 2.0,
    force: bool = False,
) -> Merged:
    """Writes the trained model as an ordinary model folder, adapters added to the weights, unless
    that changes what it does.

    The gate: the first `rows` of validation are answered before and after, by adapters over
    weights of the stored kind and by the merged ones, in fp32 where those are stored; the main
    score may move by `tolerance` points of 100, and of a closed task `answers` percent of the
    answers may change. With `force` it is written all the same, and `merged.json` says so. Only the
    weights are new, in files as large as the base's: every other file is the base's own.

    Raises:
        ModelError: the folder holds something already, or the gate is not passed: nothing is
            written then.
    """
    folder = _new(folder)
    base, config = load_trained(record, whole=stored != "bf16"), record.config
    task = load_task(config.task)
    dtype = getattr(torch, TORCH_NAMES[stored])
    compute = "fp32" if stored == "fp32" else base.numerics.compute
    if config.model.base is not None:
        dense_layers(base.model, dtype)
    numerics = replace(base.numerics, compute=compute)
    gate = replace(base, source=replace(base.source, numerics=numerics))
    if not method_of(config).moves_base:
        # The adapter is judged, not the type that the base is stored in.
        store_frozen(base.model, dtype)
    sample = tokens_of(base, task, config, "validation")[:rows]
    before = evaluate(gate, task.spec, "validation", sample, config.score)
    lost = merge_adapter(base.model, dtype)
    after = evaluate(gate, task.spec, "validation", sample, config.score)
    pairs = zip(before.predictions, after.predictions, strict=True)
    changed = sum(first.answer != second.answer for first, second in pairs)
    seen = Merged(
        rows=len(sample), score=before.main.name, before=before.main.value, after=after.main.value,
        changed=changed, lost=lost,
        stored_before=base.numerics.base, stored_after=stored,
    )  # fmt: skip
    said = _refusal(seen, stored, tolerance, answers if task.spec.closed else None)
    if said and not force:
        raise ModelError(f"{record.folder}: {said}")
    seen = replace(seen, forced=bool(said))
    with _draft_of(folder) as draft:
        base.model.save_pretrained(draft, max_shard_size=_shard_bytes(base))
        _own_files(base.source.folder, draft, str(dtype).removeprefix("torch."))
        said = json.dumps({**asdict(seen), "run": record.folder.name}, indent=1)
        (draft / "merged.json").write_text(said, encoding="utf-8")
    return seen


def _refusal(seen: Merged, stored: Stored, tolerance: float, answers: float | None) -> str:
    """Why this merge is not to be written: it moved the score, or changed answers, by more than is
    allowed (`answers`: None for free text); empty where it did not."""
    moved = 100 * abs(seen.after - seen.before)
    if moved <= tolerance and (answers is None or 100 * seen.changed <= answers * seen.rows):
        return ""
    allowed = f"{tolerance:g} points" + (
        "" if answers is None else f", {answers:g} % of the answers"
    )
    force = "--force writes it all the same"
    return (
        f"merged into {stored} weights it is another model: {seen.score} "
        f"{seen.before:.4f} → {seen.after:.4f}, {seen.changed} of {seen.rows} answers changed, "
        f"{seen.lost:.1%} of the adapter lost to rounding (allowed: {allowed}). "
        f"Nothing was written. {force if stored == 'fp32' else f'Try --dtype fp32; {force}'}"
    )


def _shard_bytes(base: Base) -> int:
    """What one file may hold, so that merged weights are sharded as the base's are."""
    sizes = [path.stat().st_size for path in weight_files(base.source.folder)]
    whole = sum(parameter.nbytes for parameter in base.model.parameters())
    return int(whole * max(sizes) / sum(sizes)) + SLACK


def _own_files(source: Path, draft: Path, dtype: str) -> None:
    """Lays the base's own files over what was written beside the weights: settings, tokenizer,
    template, licence, to the byte but for the type that config.json names. (What transformers
    writes anew, older versions of it read otherwise.)"""
    wanted = [
        *settings_files(source),
        *(path for pattern in ("LICEN[CS]E*", "NOTICE*") for path in sorted(source.glob(pattern))),
    ]
    kept = {path.relative_to(source) for path in wanted}
    for path in (draft / name for name in ("config.json", "generation_config.json")):
        if path.exists() and path.relative_to(draft) not in kept:
            path.unlink()
    for path in wanted:
        to = draft / path.relative_to(source)
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(path.read_bytes())
    config = draft / "config.json"
    content = config.read_bytes()
    if is_quantised(source):  # the merged weights are not
        given = {**read_settings(source)}
        del given["quantization_config"]
        content = json.dumps(given, indent=2, ensure_ascii=False).encode()
    named = rb'("(?:torch_)?dtype"\s*:\s*)"[^"]*"'
    config.write_bytes(re.sub(named, rb'\1"' + dtype.encode() + b'"', content))
