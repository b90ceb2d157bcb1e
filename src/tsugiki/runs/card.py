"""What goes with an exported adapter: how it is asked (`tsugiki.json`, for programs) and a model
card (`README.md`) with a snippet that asks it so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.config.task import TaskSpec
from tsugiki.data.prompts import ending_of, opening_of, pad_id_of
from tsugiki.data.tasks import CHAT, SPLITS, find_task
from tsugiki.model.loading import Base
from tsugiki.runs.reading import RunRecord

SNIPPET = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

BASE = {base}{revision_line}
ADAPTER = "."  # this folder
STOPS = {stops}

tokenizer = AutoTokenizer.from_pretrained(BASE{revision})
model = AutoModelForCausalLM.from_pretrained(BASE{revision}, dtype="auto")
model.generation_config = GenerationConfig(  # instead of the base's: answers are greedy
    do_sample=False, max_new_tokens={max_new_tokens}, eos_token_id=STOPS, pad_token_id={pad}
)
model = PeftModel.from_pretrained(model, ADAPTER).eval()


def answer(**fields):
    prompt = {template}.format(**fields)
{ids}
    mask = torch.ones(1, len(ids), dtype=torch.long)
    written = model.generate(input_ids=torch.tensor([ids]), attention_mask=mask)[0].tolist()
    if written[-1] in STOPS:
        written.pop()
    return tokenizer.decode(written)[len(tokenizer.decode(ids)):]


print(answer({fields}))
"""
PLAIN_IDS = """\
    ids = {opening}tokenizer(prompt, add_special_tokens=False)["input_ids"]"""
CHAT_IDS = """\
    turns = [{{"role": "user", "content": prompt}}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]"""


def asked_so(record: RunRecord, base: Base, base_name: str) -> dict[str, Any]:
    """The prompt's form, label words, stop ids and settings of generation, the base and the
    scores, as JSON."""
    spec, chat = find_task(record.config.task.name)[0], _format(record) == CHAT
    ending = ending_of(base.tokenizer, chat=chat, stops=base.stops)
    model = record.config.model
    return {
        "base": {
            "name": base_name,
            "revision": model.revision,
            "sha256": record.provenance.model_sha256,
        },
        "prompt": {
            "format": _format(record),
            "template": _template(spec, record),
            "chat_template": chat,
            "opening_ids": [] if chat else opening_of(base.tokenizer),
            "fields": list(spec.fields),
        },
        "answers": {"labels": spec.labels, "candidates_from": list(spec.choices)},
        "generation": {
            "do_sample": False,
            "max_new_tokens": record.config.score.max_new_tokens or spec.max_new_tokens,
            "eos_token_id": sorted(ending.stops),
            "pad_token_id": pad_id_of(base.tokenizer),
        },
        "task": {"name": spec.name, "licence": spec.licence, "citation": spec.citation},
        "scores": {
            part: {
                score.name: {"value": score.value, "low": score.low, "high": score.high}
                for score in scores.scores
            }
            for part in SPLITS
            if (scores := record.scores(part)) is not None
        },
        "run": record.folder.name,
        "tsugiki": record.provenance.versions.get("tsugiki", ""),
    }


def _format(record: RunRecord) -> str:
    named = record.provenance.task
    return named.format if named else find_task(record.config.task.name)[0].default_format


def _template(spec: TaskSpec, record: RunRecord) -> str:
    formats = spec.formats
    return formats.get(_format(record)) or formats.get("plain") or formats[spec.default_format]


def snippet_of(asked: Mapping[str, Any]) -> str:
    """Python that asks the adapter as it was trained, with transformers and peft."""
    prompt, base, generation = asked["prompt"], asked["base"], asked["generation"]
    opening = f"{prompt['opening_ids']} + " if prompt["opening_ids"] else ""
    form = CHAT_IDS if prompt["chat_template"] else PLAIN_IDS
    revision = base["revision"]
    return SNIPPET.format(
        base=json.dumps(base["name"], ensure_ascii=False),
        revision_line=f"\nREVISION = {json.dumps(revision)}" if revision else "",
        revision=", revision=REVISION" if revision else "",
        fields=", ".join(f'{name}="…"' for name in prompt["fields"]),
        template=json.dumps(prompt["template"], ensure_ascii=False),
        ids=form.format(opening=opening),
        max_new_tokens=generation["max_new_tokens"],
        stops=generation["eos_token_id"],
        pad=generation["pad_token_id"],
    )


def card_of(record: RunRecord, asked: Mapping[str, Any]) -> str:
    """The model card, in the Hub's form."""
    base, task, config = asked["base"], asked["task"], record.config
    labels = ", ".join(asked["answers"]["labels"].values())
    revision = f", revision `{base['revision']}`" if base["revision"] else ""
    lora = config.lora
    made = (
        f"rank {lora.rank} on {lora.targets}, α {lora.scale * lora.rank:g}, learning rate "
        f"{config.train.learning_rate:g}, epochs {config.train.epochs:g}, batch "
        f"{config.train.batch}"
        if lora is not None
        else "trained elsewhere, on what is not known here"
    )
    asked_for = json.dumps(
        _without_folders(config.model_dump(mode="json", exclude_none=True)), ensure_ascii=False
    )
    lines = [
        "---",
        f"base_model: {json.dumps(base['name'], ensure_ascii=False)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "language: ja",
        "tags: [lora, tsugiki]",
        "---",
        "",
        f"# {task['name']}: a LoRA adapter for {config.model.label}",
        "",
        f"- **Base**: `{base['name']}`{revision}; weights' sha256 `{base['sha256']}`. Its licence "
        "holds for what is made of it.",
        f"- **Data**: {task['name']} ({task['licence']}). {task['citation']}",
        f"- **Adapter**: {made}.",
        f"- **Prompt** (format `{asked['prompt']['format']}`"
        f"{', in the chat template' if asked['prompt']['chat_template'] else ''}): "
        f"`{_in_code(asked['prompt']['template'])}`",
        *([f"- **Answers**: {labels}"] if labels else []),
        f"- **Generation**: greedy, at most {asked['generation']['max_new_tokens']} new tokens, "
        f"ended by the ids {asked['generation']['eos_token_id']}.",
        "",
        "## Scores",
        "",
        *_score_lines(asked["scores"]),
        "",
        "## Use",
        "",
        "```python",
        snippet_of(asked).rstrip(),
        "```",
        "",
        "`tsugiki.json` has the same for programs. Rank and α are one for all modules; smaller "
        "modules are padded with zero rows.",
        "",
        "## Made with",
        "",
        f"tsugiki {asked['tsugiki']}, `tsugiki run`, from:",
        "",
        "```json",
        asked_for,
        "```",
        "",
    ]
    return "\n".join(lines)


def _without_folders(given: Any) -> Any:
    """Absolute paths cut to their last part: a card is passed on."""
    if isinstance(given, dict):
        return {key: _without_folders(value) for key, value in given.items()}
    return Path(given).name if isinstance(given, str) and Path(given).is_absolute() else given


def _in_code(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")


def _score_lines(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Sequence[str]:
    if not scores:
        return ["Not scored."]
    lines = ["| part | score | value [95 % interval] |", "|---|---|---|"]
    for part, named in scores.items():
        for name, score in named.items():
            value = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
            lines.append(f"| {part} | {name} | {value} |")
    return lines
