"""A GPT-2 adapter as a GGUF, by llama.cpp's own converter without its transposition.

    python benchmarks/interop/gpt2_lora_to_gguf.py LLAMA_CPP ADAPTER --base FOLDER --to adapter.gguf

The converter transposes GPT-2's weights, and the pairs of an adapter with them. peft keeps those
pairs as for any linear layer (A [rank, in], B [out, rank]), so their places are exchanged by it:
llama.cpp refuses the file, or where a weight is square, would take the wrong product.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_cpp", type=Path, help="sources of llama.cpp")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    from conversion.gpt2 import GPT2Model

    def as_they_are(model: Any, tensor: Any, name: str, bid: int | None) -> Iterator[Any]:
        yield model.map_tensor_name(name), tensor

    GPT2Model.modify_tensors = as_they_are
    sys.argv[1:] = [str(args.adapter), "--base", str(args.base), "--outfile", str(args.to)]
    runpy.run_path(str(args.llama_cpp / "convert_lora_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
