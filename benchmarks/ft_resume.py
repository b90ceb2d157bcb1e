"""Does full fine-tuning that was killed on a card go on to the same bits? A model of the paper's
1 B shape (random weights, rows of JNLI's lengths), straight and killed.

    python -m benchmarks.ft_resume --folder /tmp/checkpoints [--size 1b] [--moments fp32]

The second run is killed by SIGKILL after its first checkpoint, and run again. The digests are over
every tensor of the lane: weights, rests, moments, counters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path


def train(size: str, moments: str, steps: int, folder: Path | None) -> None:
    import torch
    from benchmarks.step_vs_peers import BATCH, DEVICE, build, make_rows, settings

    from tsugiki.model.numerics import Numerics
    from tsugiki.train.engine import fit
    from tsugiki.train.full_weights import FullWeights
    from tsugiki.train.lane import Lane
    from tsugiki.train.open_step import open_step

    rows, model = make_rows("jnli"), build(size, "llama", torch.float32)
    asked = settings(steps * BATCH / len(rows), moments=moments)
    moves = FullWeights(model, asked, halves=True)
    lane = Lane("FT", dict(model.named_parameters()), asked, len(rows), moves=moves)
    numerics = Numerics(compute="bf16", base="fp32", trained="fp32 (bf16 + int16)")
    with open_step(model, [lane], rows, pad_id=0, device=DEVICE, numerics=numerics) as step:
        [result] = fit(step, [lane], DEVICE, folders=[folder], checkpoint_every_s=0.0)
    digest = hashlib.sha256()
    for name, tensor in sorted(lane.state_tensors().items()):
        # Sums of the bits and of the bits times their position: as many as the device reads fast.
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        total = sum(int((part.long() * (1 + torch.arange(len(part), device=part.device))).sum())
                    for part in flat.split(2**26))  # fmt: skip
        digest.update(f"{name}:{len(flat)}:{total};".encode())
    losses = result.history.loss
    print(json.dumps({"digest": digest.hexdigest(), "steps": lane.step, "last_loss": losses[-1],
                      "resumed_from": result.resumed_from}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--moments", default="fp32")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--part", choices=["straight", "kept"])
    args = parser.parse_args()
    if args.part:
        kept = args.folder if args.part == "kept" else None
        train(args.size, args.moments, args.steps, kept)
        return
    command = [sys.executable, "-m", "benchmarks.ft_resume", *sys.argv[1:], "--part"]
    straight = subprocess.run([*command, "straight"], stdout=subprocess.PIPE, text=True, check=True)
    running = subprocess.Popen([*command, "kept"], stdout=subprocess.PIPE, text=True)
    while running.poll() is None and not list(args.folder.glob("step-*/state.json")):
        time.sleep(0.001)
    running.kill()
    assert running.wait() < 0, "it ended before it could be killed: more --steps"
    again = subprocess.run([*command, "kept"], stdout=subprocess.PIPE, text=True, check=True)
    one, other = (json.loads(done.stdout.splitlines()[-1]) for done in (straight, again))
    print("straight", one, "killed and resumed", other, sep="\n")
    same = one["digest"] == other["digest"] and one["last_loss"] == other["last_loss"]
    print("the same bits" if same else "OTHER BITS", f"resumed from step {other['resumed_from']}")
    sys.exit(0 if same and other["resumed_from"] else 1)


if __name__ == "__main__":
    main()
