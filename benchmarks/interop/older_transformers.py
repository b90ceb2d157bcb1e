"""Answers of an older transformers, whose tokenizer classes do not open the built-in one: prompt
ids in, ids out, decoded by `tokenizers`.

    PYTHONPATH=OLDER python older_transformers.py prompts.jsonl ADAPTER --way adapter
    PYTHONPATH=OLDER python older_transformers.py prompts.jsonl ADAPTER --way merged --merged MERGED

OLDER is a folder that `pip install --target OLDER --no-deps` filled with transformers 4.57,
tokenizers 0.22, huggingface_hub 0.36 and requests, urllib3, idna, charset-normalizer, certifi.
"""

from __future__ import annotations

from pathlib import Path

import torch
from shared import arguments, keep, read_rows, read_usage
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--way", choices=["adapter", "merged"], required=True)
    parser.add_argument("--merged", type=Path)
    args = parser.parse_args()
    rows, usage = read_rows(args.prompts), read_usage(args.adapter)
    folder = args.merged or Path(usage["base"]["name"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if args.way == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter)
    given = usage["generation"]
    model.generation_config = GenerationConfig(**given)
    tokenizer, texts = Tokenizer.from_file(str(folder / "tokenizer.json")), []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"]])
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0].tolist()
        if written[-1] in given["eos_token_id"]:
            written.pop()
        texts.append(tokenizer.decode(written)[len(tokenizer.decode(row["prompt_ids"])) :])
    keep(args.results, usage, "transformers 4.57", args.way, rows, texts, ("transformers", "peft"))


if __name__ == "__main__":
    main()
