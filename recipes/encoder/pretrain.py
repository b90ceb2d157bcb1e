"""Pre-trains an encoder (RoBERTa's layout) as a masked language model for a given time.

python pretrain.py --tokens tokens.xz --tokenizer tokenizer --out DIR --seconds 240

Writes a folder in Hugging Face format: `config.json`, `model.safetensors` in bf16, the tokenizer,
and `pretraining.json` with the held-out masked loss and all that the run was.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import RobertaConfig, RobertaForMaskedLM

sys.path.insert(0, str(Path(__file__).parents[1] / "builtin_model"))
from optimizer import build_optimizers

HELD_OUT = 0.01  # the last share of the tokens
WARM_UP = 0.05  # share of the time; then the rate falls linearly to 0
LOG_EVERY = 20  # steps; the loss is read there, so that the clock never runs far ahead of the GPU


def build_model(args: argparse.Namespace, ids: dict[str, int]) -> RobertaForMaskedLM:
    """RoBERTa's layout in fp32 with tied embeddings, without dropout: a run of minutes sees each
    text a few times."""
    config = RobertaConfig(
        # Padded to a multiple of 64, which matmuls like; the rows above the tokenizer stay unused.
        vocab_size=-(-(max(ids.values()) + 1) // 64) * 64,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        intermediate_size=4 * args.hidden,
        # RoBERTa counts positions from the padding id + 1.
        max_position_embeddings=args.context + ids["<pad>"] + 1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=True,
    )
    return RobertaForMaskedLM(config)


class MaskedWindows:
    """Windows that begin with `<s>`, with the same number of masked places in each.

    All chosen places become `[MASK]`: that some keep or change their token has no benefit
    (Wettig et al. 2023, "Should You Mask 15% in Masked Language Modeling?").
    """

    def __init__(
        self, tokens: np.ndarray, args: argparse.Namespace, ids: dict[str, int], rows: int
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(self.device)
        self.begin, self.mask = ids["<s>"], ids["[MASK]"]
        self.rows, self.length = rows, args.context - 1
        self.masked = max(1, round(args.masking * self.length))
        self.per_pass = (len(tokens) - 1) // self.length - 1  # windows; one is lost to the offset
        if self.per_pass < self.rows:
            raise SystemExit(
                f"{len(tokens):,} tokens are {max(0, self.per_pass)} windows of {self.length}, "
                f"and {self.rows} are needed: prepare more text, or lower --rows and --context"
            )
        self.draw = torch.Generator(self.device).manual_seed(0)

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Batch number `index` over all passes: inputs [b, t], masked places and what stood there
        [b, m]."""
        done, place = divmod(index, self.per_pass // self.rows)
        order = np.random.default_rng(done)
        offset = int(order.integers(self.length))
        windows = order.permutation(self.per_pass)[place * self.rows : (place + 1) * self.rows]
        starts = torch.from_numpy(windows * self.length + offset).to(self.device)
        span = torch.arange(self.length, device=self.device)
        text = self.tokens[starts[:, None] + span].long()
        chance = torch.rand(text.shape, device=self.device, generator=self.draw)
        places = chance.topk(self.masked, dim=1).indices
        targets = text.gather(1, places)
        inputs = F.pad(text.scatter(1, places, self.mask), (1, 0), value=self.begin)
        return inputs, places + 1, targets


def masked_logits(
    model: RobertaForMaskedLM, inputs: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Logits [b, m, v] of the masked places alone: the head is a third of the work otherwise."""
    hidden = model.roberta(input_ids=inputs).last_hidden_state
    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.size(-1)))
    return model.lm_head(chosen).float()


def loss_of(
    model: RobertaForMaskedLM, inputs: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean nats a masked token."""
    return F.cross_entropy(masked_logits(model, inputs, places).flatten(0, 1), targets.flatten())


def rate_share(passed: float) -> float:
    """Share of the peak learning rate when `passed` (0–1) of the run is over."""
    return min((passed + 1e-3) / WARM_UP, (1 - passed) / (1 - WARM_UP))


@torch.no_grad()
def held_out_scores(model: RobertaForMaskedLM, windows: MaskedWindows) -> dict[str, float]:
    """Mean nats and share of right guesses over the masked places of one pass."""
    model.eval()
    nats, right, seen = 0.0, 0, 0
    for index in range(windows.per_pass // windows.rows):
        inputs, places, targets = windows.batch(index)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
            logits = masked_logits(model, inputs, places).flatten(0, 1)
        nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
        right += int((logits.argmax(-1) == targets.flatten()).sum())
        seen += targets.numel()
    return {
        "held_out_loss": round(nats / seen, 4),
        "held_out_accuracy": round(right / seen, 4),
        "held_out_masked_tokens": seen,
    }


def train(model: RobertaForMaskedLM, windows: MaskedWindows, args: argparse.Namespace) -> dict:
    """Steps until the time (or the number of steps) is over; returns what the run was."""
    cuda = windows.device.type == "cuda"
    step_loss = torch.compile(loss_of) if cuda and not args.eager else loss_of
    optimizers = build_optimizers(model, args.optimizer)
    step, log, clock, passed = 0, [], time.monotonic(), 0.0
    while passed < 1:
        inputs, places, targets = windows.batch(step)
        with torch.autocast(windows.device.type, torch.bfloat16, enabled=cuda):
            loss = step_loss(model, inputs, places, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step(args.rate * rate_share(passed))
        model.zero_grad(set_to_none=True)
        step += 1
        if step == 3:
            loss.item()
            clock = time.monotonic()  # compilation is over: time counts from here
        if step % LOG_EVERY == 0:
            entry = {"step": step, "loss": round(loss.item(), 4)}
            log.append({**entry, "seconds": round(time.monotonic() - clock, 1)})
            if step % (10 * LOG_EVERY) == 0:
                print(log[-1], flush=True)
        if args.steps:
            passed = step / args.steps
        elif step >= 3:
            passed = (time.monotonic() - clock) / args.seconds
    seconds = time.monotonic() - clock
    return {
        "steps": step,
        "tokens": step * args.rows * args.context,
        "passes": round(step / (windows.per_pass // windows.rows), 2),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(step * args.rows * args.context / max(seconds, 1e-9)),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "log": log[:: max(1, len(log) // 60)],
    }


def pretrain(args: argparse.Namespace) -> None:
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    pieces = json.loads((args.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {piece["content"]: piece["id"] for piece in pieces["added_tokens"]}
    with lzma.open(args.tokens) as file:
        tokens = np.lib.format.read_array(file)
    cut = int(len(tokens) * (1 - HELD_OUT))
    model = build_model(args, ids)
    windows = MaskedWindows(tokens[:cut], args, ids, args.rows)
    held_out = MaskedWindows(tokens[cut:], args, ids, min(args.rows, 32))
    model.to(windows.device).train()
    parameters = sum(p.numel() for p in model.parameters())
    run = train(model, windows, args)
    result = {
        "layout": f"RoBERTa, {args.layers} layers x {args.hidden}",
        "parameters": parameters,
        "context": args.context,
        "masking": args.masking,
        "optimizer": args.optimizer,
        "rate": args.rate,
        "rows": args.rows,
        **held_out_scores(model, held_out),
        **run,
    }
    model.to(torch.bfloat16).save_pretrained(args.out)
    for path in args.tokenizer.iterdir():
        shutil.copy(path, args.out / path.name)
    names = json.loads((args.out / "tokenizer_config.json").read_text(encoding="utf-8"))
    (args.out / "tokenizer_config.json").write_text(
        json.dumps({**names, "model_max_length": args.context}, indent=1), encoding="utf-8"
    )
    (args.out / "pretraining.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "log"}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path, required=True, help="tokens.xz of prepare.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--context", type=int, default=256, help="longest input in tokens")
    parser.add_argument("--masking", type=float, default=0.3, help="share of tokens masked")
    parser.add_argument("--rows", type=int, default=512, help="windows a step")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--rate", type=float, default=1.0, help="times the optimizer's own rate")
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="time for steps; compilation comes on top"
    )
    parser.add_argument("--steps", type=int, help="a number of steps instead of --seconds")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    pretrain(parser.parse_args())


if __name__ == "__main__":
    main()
