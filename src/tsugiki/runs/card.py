"""What goes with an exported adapter: how it is used (`tsugiki.json`, for programs) and a model
card (`README.md`) with a snippet that does so."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tsugiki.config.fields import Record
from tsugiki.config.run import LoraConfig
from tsugiki.data.prompts import ending_of, opening_of, pad_id_of
from tsugiki.data.tasks import CHAT, SPLITS
from tsugiki.files import without_folders
from tsugiki.model.loading import Base
from tsugiki.model.numerics import TORCH_NAMES
from tsugiki.runs.inputs import task_of
from tsugiki.runs.reading import RunRecord

SNIPPET = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, {imports}GenerationConfig

BASE = {base}{revision_line}
ADAPTER = "."  # this folder
STOPS = {stops}

tokenizer = AutoTokenizer.from_pretrained(BASE{revision})
model = AutoModelForCausalLM.from_pretrained(BASE{revision}, {loaded})
model.generation_config = GenerationConfig(  # instead of the base's: answers are greedy
    do_sample=False, max_new_tokens={max_new_tokens}, eos_token_id=STOPS, pad_token_id={pad}
)
model = PeftModel.from_pretrained(model, ADAPTER).eval()


def answer(**fields):
    prompt = {template}.format(**fields)
{ids}
    prompt_ids = torch.tensor([ids], device=model.device)
    mask = torch.ones_like(prompt_ids)
    written = model.generate(input_ids=prompt_ids, attention_mask=mask)[0].tolist()
    if written[-1] in STOPS:
        written.pop()
    return tokenizer.decode(written)[len(tokenizer.decode(ids)):]


print(answer({fields}))
"""
PLAIN_IDS = """\
    ids = {opening}tokenizer(prompt, add_special_tokens=False)["input_ids"]"""
# A base in 4 bits, as it was trained over.
LOADED_4BIT = """dtype=torch.{dtype}, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.{dtype}
)"""
CHAT_IDS = """\
    turns = [{{"role": "user", "content": prompt}}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]"""


class BaseNamed(Record):
    """The model that an adapter belongs to."""

    name: str
    revision: str | None
    sha256: str
    kept_in: str  # bf16, fp32 or nf4
    matmuls_in: str


class PromptForm(Record):
    """How a prompt is made of fields; `opening_ids` stand before it."""

    format: str
    template: str
    chat_template: bool
    opening_ids: tuple[int, ...]
    fields: tuple[str, ...]


class Generation(Record):
    """Settings of generation, by transformers' names."""

    do_sample: bool = False
    max_new_tokens: int
    eos_token_id: tuple[int, ...]
    pad_token_id: int


class ScoreLine(Record):
    """One score of one part, with its 95 % interval."""

    part: str
    score: str
    value: float
    low: float
    high: float


class Usage(Record):
    """All that a program needs beside the weights, and where they come from."""

    base: BaseNamed
    prompt: PromptForm
    labels: dict[str, str]
    candidates_from: tuple[str, ...]
    generation: Generation
    task: str
    licence: str
    citation: str
    scores: tuple[ScoreLine, ...]
    run: str
    tsugiki: str


def usage_of(record: RunRecord, base: Base, base_name: str) -> Usage:
    """How a run's adapter is used."""
    task, model, tokenizer = task_of(record), record.config.model, base.tokenizer
    spec, chat = task.spec, task.format == CHAT
    ending = ending_of(tokenizer, chat=chat, stops=base.stops)
    return Usage(
        base=BaseNamed(
            name=base_name,
            revision=model.revision,
            sha256=record.provenance.model_sha256,
            kept_in=base.numerics.base,
            matmuls_in=base.numerics.compute,
        ),
        prompt=PromptForm(
            format=task.format,
            template=task.template,
            chat_template=chat,
            opening_ids=() if chat else tuple(opening_of(tokenizer)),
            fields=spec.fields,
        ),
        labels=dict(spec.labels),
        candidates_from=spec.choices,
        generation=Generation(
            max_new_tokens=record.config.score.max_new_tokens or spec.max_new_tokens,
            eos_token_id=tuple(sorted(ending.stops)),
            pad_token_id=pad_id_of(tokenizer),
        ),
        task=spec.name,
        licence=spec.licence,
        citation=spec.citation,
        scores=tuple(
            ScoreLine(part=part, score=each.name, value=each.value, low=each.low, high=each.high)
            for part in SPLITS
            if (scores := record.scores(part)) is not None
            for each in scores.scores
        ),
        run=record.folder.name,
        tsugiki=record.provenance.versions.get("tsugiki", ""),
    )


def snippet_of(usage: Usage) -> str:
    """Python that uses the adapter as it was trained, with transformers and peft."""
    prompt, base, generation = usage.prompt, usage.base, usage.generation
    opening = f"{list(prompt.opening_ids)} + " if prompt.opening_ids else ""
    form = CHAT_IDS if prompt.chat_template else PLAIN_IDS
    four = base.kept_in == "nf4"
    dtype = TORCH_NAMES[base.matmuls_in]
    return SNIPPET.format(
        imports="BitsAndBytesConfig, " if four else "",
        loaded=LOADED_4BIT.format(dtype=dtype) if four else f"dtype=torch.{dtype}",
        base=json.dumps(base.name, ensure_ascii=False),
        revision_line=f"\nREVISION = {json.dumps(base.revision)}" if base.revision else "",
        revision=", revision=REVISION" if base.revision else "",
        fields=", ".join(f'{name}="…"' for name in prompt.fields),
        template=json.dumps(prompt.template, ensure_ascii=False),
        ids=form.format(opening=opening),
        max_new_tokens=generation.max_new_tokens,
        stops=list(generation.eos_token_id),
        pad=generation.pad_token_id,
    )


def card_of(record: RunRecord, usage: Usage, adapter: LoraConfig) -> str:
    """The model card, in the Hub's form."""
    base, prompt, generation = usage.base, usage.prompt, usage.generation
    revision = f", revision `{base.revision}`" if base.revision else ""
    form = f"format `{prompt.format}`{', in the chat template' if prompt.chat_template else ''}"
    four = base.kept_in == "nf4"
    config = json.dumps(
        record.config.model_dump(mode="json", exclude_none=True), ensure_ascii=False
    )
    lines = [
        "---",
        f"base_model: {json.dumps(base.name, ensure_ascii=False)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "language: ja",
        "tags: [lora, tsugiki]",
        "---",
        "",
        f"# {usage.task}: a LoRA adapter for {record.config.model.label}",
        "",
        f"- **Base**: `{base.name}`{revision}; weights' sha256 `{base.sha256}`. Its licence holds "
        "for what is made of it.",
        *(["- **Precision**: trained over the base in 4 bits (bitsandbytes NF4)."] * four),
        f"- **Data**: {usage.task} ({usage.licence or 'licence not given'}). {usage.citation}",
        f"- **Adapter**: rank {adapter.rank} on {adapter.targets}, α / r = {adapter.scale:g}. One "
        "rank is written for all modules, smaller ones padded with zero rows.",
        f"- **Prompt** ({form}): `{_in_code(prompt.template)}`",
        *([f"- **Answers**: {', '.join(usage.labels.values())}"] if usage.labels else []),
        f"- **Generation**: greedy, at most {generation.max_new_tokens} new tokens, ended by the "
        f"ids {list(generation.eos_token_id)}.",
        "",
        *("## Scores", "", *_score_lines(usage.scores), ""),
        *("## Use", "", "```python", snippet_of(usage).rstrip(), "```", ""),
        "`tsugiki.json` has the same for programs.",
        "",
        *("## Made with", "", f"tsugiki {usage.tsugiki}, `tsugiki run`, from:", ""),
        *("```json", without_folders(config), "```", ""),
    ]
    return "\n".join(lines)


def _in_code(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")


def _score_lines(scores: Sequence[ScoreLine]) -> list[str]:
    if not scores:
        return ["Not scored."]
    lines = ["| part | score | value [95 % interval] |", "|---|---|---|"]
    for each in scores:
        value = f"{each.value:.3f} [{each.low:.3f}, {each.high:.3f}]"
        lines.append(f"| {each.part} | {each.score} | {value} |")
    return lines
