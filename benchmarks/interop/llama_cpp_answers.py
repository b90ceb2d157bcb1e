"""Answers of llama.cpp in fp32, by the adapter over its base or by the merged model.

    python benchmarks/interop/llama_cpp_answers.py prompts.jsonl ADAPTER --way adapter \\
        --gguf base.gguf --lora adapter.gguf
    python benchmarks/interop/llama_cpp_answers.py prompts.jsonl ADAPTER --way merged \\
        --gguf merged.gguf
    python benchmarks/interop/llama_cpp_answers.py prompts.jsonl ADAPTER --way base \\
        --gguf base.gguf

Runs in an environment of its own (see README.md). Weights and the cache of keys and values (f16 by
default) are f32; stop ids and length are those of `tsugiki.json`; prompts are given as ids.
"""

from __future__ import annotations

from typing import Any

from shared import WAYS, answer_texts, arguments, keep, read_rows, read_usage

F32 = 0  # ggml's number of the type


def answer(llm: Any, prompt_ids: list[int], generation: dict[str, Any]) -> list[int]:
    """The ids of one answer, its stop id included."""
    stops, said = set(generation["eos_token_id"]), list[int]()
    for token in llm.generate(prompt_ids, temp=0.0, repeat_penalty=1.0):
        said.append(token)
        if token in stops or len(said) == generation["max_new_tokens"]:
            break
    return said


def main() -> None:
    from llama_cpp import Llama

    parser = arguments(__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--gguf", required=True, help="the base, or the merged model")
    parser.add_argument("--lora", help="the adapter")
    parser.add_argument("--note", default="", help="kept beside the result")
    args = parser.parse_args()
    assert bool(args.lora) == (args.way == "adapter"), "--lora belongs to --way adapter"
    rows, usage = read_rows(args.prompts), read_usage(args.adapter)
    generation = usage["generation"]
    room = max(len(row["prompt_ids"]) for row in rows) + generation["max_new_tokens"]
    llm = Llama(
        args.gguf, lora_path=args.lora, n_ctx=room, n_threads=1, n_threads_batch=1, seed=1,
        type_k=F32, type_v=F32, verbose=False,
    )  # fmt: skip
    ids = [answer(llm, row["prompt_ids"], generation) for row in rows]
    texts, packages = answer_texts(usage, rows, ids), ("llama-cpp-python",)
    keep(args.results, usage, "llama.cpp", args.way, rows, texts, packages, args.note)


if __name__ == "__main__":
    main()
