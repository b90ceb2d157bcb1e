"""Makes the built-in model from a folder of text, in one command: tokenizer, packing, comparison
of shapes, long run, export.

    python recipes/builtin_model/build.py --corpus DIR --work DIR --out
    src/tsugiki/presets/models/NAME

Each stage keeps its result in `--work` and is skipped when it is there; `--stage` runs one stage
alone, so that tokenizer and packing can be made on a CPU machine and `compare` and `train` on a
GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMPARED = [
    ("d256x6", "muon"),
    ("d256x8", "muon"),
    ("d320x6", "muon"),
    ("d384x4", "muon"),
    ("d320x6", "adamw"),
]
STAGES = ["tokenizer", "pack", "compare", "train", "export"]


def make_tokenizer(args: argparse.Namespace) -> None:
    from corpus import SOURCES, split_documents
    from tokenizer import characters_per_token, sample_lines, train_tokenizer

    lines = sample_lines(args.corpus, args.tokenizer_characters)
    held_out = [document for name in SOURCES for document in split_documents(args.corpus, name)[1]]
    measured = {}
    for size in args.vocab_sizes:
        tokenizer = train_tokenizer(lines, size)
        measured[size] = round(characters_per_token(tokenizer, held_out), 4)
        print(f"{size} pieces: {measured[size]} characters a token", flush=True)
        tokenizer.save(str(args.work / f"tokenizer-{size}.json"))
    (args.work / "tokenizer.measured.json").write_text(json.dumps(measured), encoding="utf-8")


def make_pack(args: argparse.Namespace) -> None:
    from pack import pack
    from tokenizers import Tokenizer

    pack(
        args.corpus,
        Tokenizer.from_file(str(args.work / f"tokenizer-{args.vocab}.json")),
        args.work / "packed",
    )


def _pretrain(
    args: argparse.Namespace, shape: str, optimizer: str, seconds: float, out: Path
) -> subprocess.Popen:
    command = [
        sys.executable,
        str(HERE / "pretrain.py"),
        "--packed",
        str(args.work / "packed"),
        "--out",
        str(out),
    ]
    command += [
        "--shape",
        shape,
        "--optimizer",
        optimizer,
        "--vocab",
        str(args.vocab),
        "--seconds",
        str(seconds),
    ]
    command += ["--rows", str(args.rows), "--micro", str(args.micro)]
    if args.steps:
        command += ["--steps", str(args.steps)]
    return subprocess.Popen(command)


def make_compare(args: argparse.Namespace) -> None:
    """Shapes one after another, each alone on the card for the same time (side by side they would
    share it unevenly)."""
    runs = {f"{shape}-{optimizer}": (shape, optimizer) for shape, optimizer in COMPARED}
    for name, what in runs.items():
        if _pretrain(args, *what, args.compare_seconds, args.work / "compare" / name).wait():
            raise SystemExit(f"the comparison run {name} failed; its message stands above")
    rows = {
        name: json.loads((args.work / "compare" / name / "result.json").read_text("utf-8"))
        for name in runs
    }
    for name, row in sorted(rows.items(), key=lambda item: item[1]["mean_bits_per_character"]):
        print(
            f"{name:16} {row['parameters'] / 1e6:5.1f} M  {row['tokens'] / 1e6:6.1f} M tokens  "
            f"{row['mean_bits_per_character']:.4f} bits a character"
        )


def best_compared(work: Path) -> tuple[str, str]:
    """Shape and optimiser with the fewest held-out bits a character in the comparison."""
    rows = [
        json.loads(path.read_text("utf-8"))
        for path in sorted((work / "compare").glob("*/result.json"))
    ]
    best = min(rows, key=lambda row: row["mean_bits_per_character"])
    return best["shape"], best["optimizer"]


def make_train(args: argparse.Namespace) -> None:
    shape, optimizer = (
        best_compared(args.work) if args.shape == "auto" else (args.shape, args.optimizer)
    )
    print(f"long run: {shape}, {optimizer}", flush=True)
    if _pretrain(args, shape, optimizer, args.seconds, args.work / "train").wait():
        raise SystemExit("the long run failed; run the stage again to resume")


def make_export(args: argparse.Namespace) -> None:
    from export import export

    export(args.work, args.out, args.vocab)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        help="folder of NAME.txt or NAME.txt.zst (needed by tokenizer and pack)",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="where the stages keep their results"
    )
    parser.add_argument("--out", type=Path, help="the HF folder to write (export)")
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="only this stage (may be repeated)"
    )
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument(
        "--vocab-sizes",
        type=int,
        nargs="+",
        default=[4000, 6000, 8000, 12000],
        help="sizes measured",
    )
    parser.add_argument("--tokenizer-characters", type=int, default=14_000_000)
    parser.add_argument("--shape", default="auto", help="auto: the best of the comparison")
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--rows", type=int, default=128, help="windows of 1,024 tokens a step")
    parser.add_argument("--micro", type=int, default=64, help="windows a backward pass")
    parser.add_argument(
        "--steps", type=int, help="a fixed number of steps instead of a time, to try the recipe out"
    )
    parser.add_argument("--compare-seconds", type=float, default=60.0)
    parser.add_argument(
        "--seconds", type=float, default=330.0, help="stepping time of the long run"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    done = {
        "tokenizer": args.work / f"tokenizer-{args.vocab}.json",
        "pack": args.work / "packed" / "packed.json",
        "compare": args.work / "compare" / "d320x6-muon" / "result.json",
        "train": args.work / "train" / "result.json",
    }
    stages = {
        "tokenizer": make_tokenizer,
        "pack": make_pack,
        "compare": make_compare,
        "train": make_train,
        "export": make_export,
    }
    for stage in args.stage or STAGES:
        if stage in done and done[stage].exists():
            print(f"{stage}: kept, {done[stage]}")
            continue
        print(f"{stage} …", flush=True)
        stages[stage](args)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
