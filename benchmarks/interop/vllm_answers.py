"""Answers of vLLM in fp32, by the adapter over its base or by the merged model.

    python benchmarks/interop/vllm_answers.py prompts.jsonl ADAPTER --way adapter
    python benchmarks/interop/vllm_answers.py prompts.jsonl ADAPTER --way merged --merged FOLDER
    python benchmarks/interop/vllm_answers.py prompts.jsonl ADAPTER --way base

Runs in an environment of its own (see README.md). Stop ids and length are those of
`tsugiki.json`; prompts are given as ids.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shared import WAYS, answer_texts, arguments, keep, read_rows, read_usage

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def answers(
    model: str, rows: list[dict[str, Any]], generation: dict[str, Any], adapter: Path | None
) -> list[list[int]]:
    """The ids of each answer, its stop id included."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora: dict[str, Any] = {}
    if adapter:
        rank = json.loads((adapter / "adapter_config.json").read_text("utf-8"))["r"]
        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    llm = LLM(model, dtype="float32", enforce_eager=True, max_num_seqs=32, seed=0, **lora)
    made = llm.generate(
        [{"prompt_token_ids": row["prompt_ids"]} for row in rows],
        SamplingParams(
            temperature=0.0,
            max_tokens=generation["max_new_tokens"],
            stop_token_ids=generation["eos_token_id"],
            detokenize=False,
        ),
        lora_request=LoRARequest("tsugiki", 1, str(adapter.resolve())) if adapter else None,
    )
    return [list(each.outputs[0].token_ids) for each in made]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--merged", type=Path, help="what tsugiki export --merge wrote")
    args = parser.parse_args()
    rows, usage = read_rows(args.prompts), read_usage(args.adapter)
    model = str(args.merged) if args.way == "merged" else usage["base"]["name"]
    adapter = args.adapter if args.way == "adapter" else None
    ids = answers(model, rows, usage["generation"], adapter)
    texts, packages = answer_texts(usage, rows, ids), ("vllm-cpu", "torch", "transformers")
    keep(args.results, usage, "vLLM", args.way, rows, texts, packages)


if __name__ == "__main__":
    main()
