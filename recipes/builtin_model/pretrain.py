"""Pre-trains one shape on packed tokens: resumable, warm-up-stable-decay, bits per character on
held-out documents.

python pretrain.py --packed DIR --out DIR --shape d320x6 --seconds 330
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from optimizer import build_optimizers
from pack import unpack
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 1024
SHAPES = {  # name -> (hidden size, layers, heads, MLP size)
    "d256x6": (256, 6, 4, 704),
    "d256x8": (256, 8, 4, 704),
    "d320x6": (320, 6, 5, 864),
    "d384x4": (384, 4, 6, 1024),
}
WARM_UP, DECAY = 0.02, 0.40  # shares of all steps


def build_model(shape: str, vocab_size: int) -> LlamaForCausalLM:
    """A Llama-layout model with tied embeddings in fp32."""
    hidden, layers, heads, mlp = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, a plateau at 1, then a linear decay to 0."""
    warm, decay = max(1, round(WARM_UP * steps)), max(1, round(DECAY * steps))
    return min(1.0, (step + 1) / warm, (steps - step) / decay)


class Windows:
    """Windows of CONTEXT + 1 tokens in a seeded order; each pass starts at its own offset."""

    def __init__(self, tokens: np.ndarray, rows: int, device: torch.device):
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self.rows, self.device = rows, device
        self.per_pass = (len(tokens) - CONTEXT - 1) // CONTEXT // rows

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets) [rows, CONTEXT] of batch number `index`, counted over all passes."""
        done, place = divmod(index, self.per_pass)
        draw = np.random.default_rng(done)
        offset = int(draw.integers(CONTEXT))
        order = draw.permutation(self.per_pass * self.rows)[
            place * self.rows : (place + 1) * self.rows
        ]
        starts = torch.from_numpy(order * CONTEXT + offset).to(self.device, non_blocking=True)
        rows = self.tokens[starts[:, None] + torch.arange(CONTEXT + 1, device=self.device)].long()
        return rows[:, :-1], rows[:, 1:]


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean nats a token."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    logits = hidden @ model.model.embed_tokens.weight.to(hidden.dtype).T
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def bits_per_character(
    model: LlamaForCausalLM, held_out: dict[str, np.ndarray], table: dict, device: torch.device
) -> dict:
    """Bits a character (of the text before NFKC) by source; windows of CONTEXT, the first token
    unscored."""
    result = {}
    for name, tokens in held_out.items():
        array = torch.from_numpy(tokens[: 300 * CONTEXT].astype(np.int64)).to(device)
        total = 0.0
        for start in range(0, len(array) - 1, CONTEXT):
            row = array[None, start : start + CONTEXT + 1]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                total += loss_of(model, row[:, :-1], row[:, 1:]).item() * (row.numel() - 1)
        characters = table[name]["held_out_characters"] * len(array) / len(tokens)
        result[name] = total / math.log(2) / characters
    return result


def pretrain(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    tokens, held_out, table = unpack(args.packed)
    windows = Windows(tokens, args.rows, device)
    model = build_model(args.shape, args.vocab).to(device)
    optimizers = build_optimizers(model, args.optimizer)
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    state = {"step": 0, "steps": args.steps, "seconds": 0.0, "log": []}
    if (out / "state.pt").exists():
        kept = torch.load(out / "state.pt", weights_only=True, map_location=device)
        model.load_state_dict(kept["model"])
        for optimizer, one in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(one)
        state = kept["state"]
    step_loss = torch.compile(loss_of) if device.type == "cuda" and not args.eager else loss_of

    def save() -> None:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "state": state,
            },
            out / "state.tmp",
        )
        os.replace(out / "state.tmp", out / "state.pt")

    clock = saved = time.monotonic()
    first, begun = state["step"], state["seconds"]
    while args.steps is None or state["step"] < args.steps:
        step, steps = state["step"], state["steps"]
        if steps is not None and step >= steps:
            break
        share = learning_rate_share(step, steps) if steps else min(1.0, (step + 1) / 100)
        inputs, targets = windows.batch(step)
        for one, other in zip(inputs.split(args.micro), targets.split(args.micro), strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = step_loss(model, one, other)
            (loss * (len(one) / args.rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step(share)
        model.zero_grad(set_to_none=False)
        state["step"] += 1
        if state["step"] == first + 5:
            loss.item()
            clock = time.monotonic()  # compilation is over: time counts from here
        if state["step"] % 50 == 0:
            value = loss.item()
            state["seconds"], clock = state["seconds"] + time.monotonic() - clock, time.monotonic()
            entry = {
                "step": state["step"],
                "tokens": state["step"] * args.rows * CONTEXT,
                "loss": round(value, 4),
            }
            state["log"].append(
                {**entry, "share": round(share, 4), "seconds": round(state["seconds"], 1)}
            )
            if (
                args.steps is None
                and share == 1.0
                and (steps is None or step < (1 - DECAY) * steps)
            ):
                # On the plateau the schedule does not depend on the total: fit it to the time that
                # is left.
                rate = (state["step"] - first - 5) / (state["seconds"] - begun)
                state["steps"] = state["step"] + max(
                    50, int(rate * (args.seconds - state["seconds"]))
                )
            if state["step"] % 500 == 0:
                print(args.shape, args.optimizer, entry, "of", state["steps"], flush=True)
        if time.monotonic() - saved > args.save_every:
            save()
            saved = time.monotonic()
    state["seconds"] += time.monotonic() - clock
    save()
    finish(args, model, held_out, table, state, len(tokens), device)


def finish(args, model, held_out, table, state, pass_tokens, device) -> None:
    """Held-out score, `result.json` (everything the model card quotes), weights in bf16."""
    bits = bits_per_character(model, held_out, table, device)
    seen = state["step"] * args.rows * CONTEXT
    result = {
        "shape": args.shape,
        "optimizer": args.optimizer,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state["step"],
        "tokens": seen,
        "passes": round(seen / pass_tokens, 2),
        "seconds": round(state["seconds"], 1),
        "tokens_per_s": round(seen / state["seconds"]),
        "bits_per_character": {name: round(value, 4) for name, value in bits.items()},
        "mean_bits_per_character": round(sum(bits.values()) / len(bits), 4),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "log": state["log"],
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    model.to(torch.bfloat16).save_pretrained(args.out / "hf", safe_serialization=True)
    print(json.dumps({k: v for k, v in result.items() if k != "log"}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="d320x6")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument(
        "--seconds",
        type=float,
        default=330.0,
        help="wall time to fill; the number of steps follows",
    )
    parser.add_argument("--steps", type=int, help="a fixed number of steps instead of --seconds")
    parser.add_argument("--rows", type=int, default=128, help="windows of 1,024 tokens a step")
    parser.add_argument("--micro", type=int, default=64, help="windows a backward pass")
    parser.add_argument(
        "--save-every", type=float, default=60.0, help="seconds between checkpoints"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    pretrain(parser.parse_args())


if __name__ == "__main__":
    main()
