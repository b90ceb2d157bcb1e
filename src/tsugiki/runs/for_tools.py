"""A run's test part for lm-evaluation-harness and flexeval: a task file, the rows, the rule, and
the command with which the tool gives tsugiki's score.

Prompts are written as text that becomes exactly the ids that the run was scored with; where a
tokenizer does not give them back, nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tsugiki.data.prompts import Tokens, ending_of, opening_of
from tsugiki.data.tasks import CHAT, Task, load_task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import ConfigError, ModelError
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.model.loading import load_tokenizer, max_positions_of, read_model
from tsugiki.model.numerics import TORCH_NAMES
from tsugiki.runs.methods import method_of
from tsugiki.runs.preflight import longest_of, rows_of
from tsugiki.runs.reading import RunRecord

ADAPTER = "adapter"  # the folder beside the task files
RULE = '''"""tsugiki's rule for a right answer: equal after NFKC and strip."""

import unicodedata


def _plain(text):
    return unicodedata.normalize("NFKC", text).strip()


def process_results(doc, results):
    return {"accuracy": float(_plain(results[0]) == _plain(doc["target"]))}
'''
LM_EVAL = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: test.jsonl
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: target
process_results: !function rule.process_results
generation_kwargs:
  until: {stops}
  max_gen_toks: {new}
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_for_tool(record: RunRecord, draft: Path, tool: str, base_name: str) -> None:
    """Writes the task files into a folder.

    Raises:
        ConfigError: the task's score is not that of equal answers; the tool's own rules for others
            are in `tsugiki score --rules`.
        ModelError: a prompt's text does not become its ids again.
    """
    task = load_task(record.config.task)
    if task.spec.metric not in ("accuracy", "exact_match"):
        raise ConfigError(
            f"export --{tool}: the score of {task.name} is {task.spec.metric}: written are tasks "
            "whose answers are right or wrong. tsugiki score RUN --rules all scores by the rules "
            "of these tools"
        )
    folder = resolve(record.config.model)
    tokenizer = load_tokenizer(folder)
    rows = _rows(record, task, tokenizer, folder)
    lines = [
        json.dumps({"id": row.example.id, "prompt": text, "target": row.example.target},
                   ensure_ascii=False)
        for row, text in zip(rows, _texts(tokenizer, rows), strict=True)
    ]  # fmt: skip
    (draft / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    name = f"tsugiki_{task.spec.name}"
    new = record.config.score.max_new_tokens or task.spec.max_new_tokens
    ending = ending_of(tokenizer, chat=task.format == CHAT, stops=stop_ids_of(folder))
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ending.stops))]
    if tool == "lm-eval":
        text = LM_EVAL.format(name=name, stops=json.dumps(stops, ensure_ascii=False), new=new)
        (draft / f"{name}.yaml").write_text(text, encoding="utf-8")
        (draft / "rule.py").write_text(RULE, encoding="utf-8")
    else:
        (draft / f"{name}.jsonnet").write_text(_flexeval(new, stops), encoding="utf-8")
    command = command_of(record, tool, name, base_name, opened=bool(opening_of(tokenizer)))
    (draft / "README.md").write_text(_readme(record, tool, command), encoding="utf-8")


def has_adapter(record: RunRecord) -> bool:
    """Whether what the run trained lies beside its base."""
    method = method_of(record.config)
    return method.tuned and not method.moves_base


def command_of(record: RunRecord, tool: str, name: str, base_name: str, *, opened: bool) -> str:
    """The command that scores, given from inside the written folder. `opened`: the tokenizer puts
    a mark before every text."""
    dtype, adapted = TORCH_NAMES[record.provenance.numerics.compute], has_adapter(record)
    # What export --merge wrote.
    model = "MERGED" if method_of(record.config).moves_base else base_name
    if tool == "lm-eval":
        given = [f"pretrained={model}", *(["peft=adapter"] if adapted else []), f"dtype={dtype}"]
        given += ["add_bos_token=True"] if opened else []
        return (
            f"lm_eval --model hf --model_args {','.join(given)} --tasks {name} --include_path . "
            "--batch_size 8"
        )
    arguments = [f"--language_model.model {ADAPTER if adapted else model}"]
    arguments += [f"--language_model.tokenizer {model}"] if adapted else []
    arguments += ["--language_model.load_peft true"] if adapted else []
    arguments += ["--language_model.add_special_tokens true"] if opened else []
    return (
        f"flexeval_lm --language_model HuggingFaceLM {' '.join(arguments)} "
        f"""--language_model.model_kwargs '{{"torch_dtype": "{dtype}"}}' """
        f"--eval_setup {name}.jsonnet --save_dir results"
    )


def _rows(record: RunRecord, task: Task, tokenizer: Tokenizer, folder: Path) -> list[Tokens]:
    """The rows of test, as they were scored."""
    import torch

    model = read_model(folder, torch.float32, only_names=True)
    return rows_of(
        tokenizer,
        task,
        record.config,
        "test",
        longest=longest_of(record.config, max_positions_of(model.config)),
        vocab_rows=model.get_input_embeddings().weight.shape[0],
        stops=stop_ids_of(folder),
    )


def _texts(tokenizer: Tokenizer, rows: Sequence[Tokens]) -> list[str]:
    """The text of every prompt without the tokenizer's opening mark."""
    texts, opening = [], len(opening_of(tokenizer))
    for row in rows:
        ids = list(row.prompt_ids)[opening:]
        text = tokenizer.decode(ids)
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            raise ModelError(
                f"row {row.example.id}: its prompt as text (“{text[:40]}”) becomes other ids: "
                "these tools, which take texts, would ask another question"
            )
        texts.append(text)
    return texts


def _flexeval(new: int, stops: Sequence[str]) -> str:
    cleaned = [{"class_path": "NFKCNormalizer"}, {"class_path": "StringStrip"}]
    rule = {"lm_output_processor": cleaned, "reference_processor": cleaned}
    setup = {
        "class_path": "Generation",
        "init_args": {
            "eval_dataset": {
                "class_path": "JsonlGenerationDataset",
                "init_args": {"path": "test.jsonl", "reference_template": "{{ target }}"},
            },
            "prompt_template": {
                "class_path": "Jinja2PromptTemplate",
                "init_args": {"template": "{{ prompt }}"},
            },
            "metrics": [{"class_path": "ExactMatch", "init_args": rule}],
            "gen_kwargs": {"max_new_tokens": new, "do_sample": False, "stop_sequences": [*stops]},
            "batch_size": 8,
        },
    }
    return json.dumps(setup, indent=2, ensure_ascii=False) + "\n"


def _readme(record: RunRecord, tool: str, command: str) -> str:
    merged = (
        "\n`MERGED` is the folder that `tsugiki export RUN --merge` wrote.\n"
        if "MERGED" in command
        else ""
    )
    score = record.main_score("test")
    known = "not scored yet" if score is None else f"{score:.4f}"
    return (
        f"# {record.folder.name} for {tool}\n\nFrom inside this folder:\n\n    {command}\n"
        f"{merged}\ntsugiki's own score on these rows: {known} (equal after NFKC and strip, "
        "greedy). "
        "`test.jsonl` holds the task's rows: its licence is theirs.\n"
    )
