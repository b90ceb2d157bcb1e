"""A model folder as an f32 GGUF without a vocabulary, by llama.cpp's own converter.

    python benchmarks/interop/to_gguf.py LLAMA_CPP FOLDER --to model.gguf

The converter refuses the built-in model's tokenizer (see README.md), and prompts are given as ids
here: so the file says that it has no vocabulary (`tokenizer.ggml.model = "none"`, a type that
llama.cpp knows and that its converter can write). Weights and settings are the converter's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def without_vocabulary(model: Any) -> None:
    """Instead of the converter's `set_vocab`. How many ids there are it does not write for every
    kind of model, and without a vocabulary nothing else tells it."""
    model._set_vocab_none()
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


def with_own_names(read: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Reads the settings, and those of `config.json` that the installed transformers drops: it
    gives GPT-NeoX's `rotary_pct` another name, which the converter does not know."""

    def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        own = json.loads((folder / "config.json").read_text("utf-8"))
        return {**own, **read(folder, is_mistral_format)}

    return load_hparams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_cpp", type=Path, help="sources of llama.cpp")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    sys.path.insert(0, str(args.llama_cpp))
    import convert_hf_to_gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    ModelBase.load_hparams = staticmethod(with_own_names(ModelBase.load_hparams))
    settings = ModelBase.load_hparams(args.folder, False)
    kind = get_model_class(get_model_architecture(settings, ModelType.TEXT))
    kind.set_vocab = without_vocabulary
    sys.argv = [*sys.argv[:1], str(args.folder), "--outtype", "f32", "--outfile", str(args.to)]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
