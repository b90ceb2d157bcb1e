"""One optimiser step, ours against the peers, in one run on one CUDA device: same weights, rows,
rank, dtype, masked prompts.

    python benchmarks/step_vs_peers.py --out OUT.json    (all: about 12 minutes on an H100)
    python benchmarks/step_vs_peers.py --out OUT.json --only 1b:jnli 6.7b:jnli --layout llama
    --steps 40

Models are of the paper's two sizes with random weights (a step's time does not depend on their
values); rows have the lengths of row_lengths.json and random ids. Peers: the loop people write
(peft over transformers with autocast, fused AdamW, right-padded to the longest row), the strongest
that peft and transformers can be made without new kernels (no attention mask and widths padded to
16; adapters in bf16 without autocast; packed rows with variable-length attention; layers compiled;
all of it), peft + Liger where it is installed, full fine-tuning by transformers in pure bf16.
Generation: HF over the adapted model as people write it, and over the merged one, at equal
batches. Every peer's loss of step 1 must equal ours. A result of one call is added to OUT.json
under its cases with its date and card, and the summary is made anew: compare within one call.

    python benchmarks/step_vs_peers.py --out OUT.json --table > OUT.md
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.data.batch import Order, collate
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens
from tsugiki.fast.cuda_graphs import GraphCapturer
from tsugiki.model.layouts import groups_of
from tsugiki.model.loading import no_dropout
from tsugiki.model.lora import attach, detach
from tsugiki.model.numerics import Numerics
from tsugiki.train.engine import fit
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.open_step import open_step

VOCAB, BATCH, RANK = 51_200, 8, 16
# Layers, width, heads, MLP of the Llama layout.
SIZES = {"1b": (24, 2048, 16, 5504), "6.7b": (32, 4096, 32, 11008)}
PEAK_FLOPS, BANDWIDTH = 784e12, 3.0e12  # measured on an H100: an 8192³ bf16 product; a device copy
DEVICE = torch.device("cuda")
LENGTHS = Path(__file__).with_name("row_lengths.json")


def build(size: str, layout: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    layers, width, heads, mlp = SIZES[size]
    config: Any
    if layout == "llama":
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
    else:
        config = GPT2Config(
            vocab_size=VOCAB,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=2048,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    config.use_cache = False
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    no_dropout(model)
    return model


def make_rows(work: str) -> list[Tokens]:
    pairs = json.loads(LENGTHS.read_text())[work]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, (prompt, answer) in enumerate(pairs):
        ids = torch.randint(10, VOCAB, (prompt + answer,), generator=generator).tolist()
        rows.append(
            Tokens(
                example=Example(id=str(number), fields={}, target=""),
                prompt_ids=tuple(ids[:prompt]),
                target_ids=tuple(ids[prompt:]),
            )
        )
    return rows


def settings(epochs: float, **changes: Any) -> TrainConfig:
    return TrainConfig(learning_rate=1e-4, epochs=epochs, batch=BATCH, **changes)


def lora_lane(model: Any, rows: list[Tokens], train: TrainConfig) -> Lane:
    grafted = attach(model, LoraConfig(targets="q+k+v+o", rank=RANK, alpha=2 * RANK), seed=0)
    return Lane("LoRA", grafted.parameters, train, len(rows), moves=OneVector(grafted))


def ours(
    size: str, layout: str, work: str, steps: int, method: str = "lora", step: str = "cuda_graph"
) -> dict[str, Any]:
    rows = make_rows(work)
    frozen = method == "lora"
    model = build(size, layout, torch.bfloat16 if frozen else torch.float32)
    numerics = Numerics(compute="bf16", base="bf16" if frozen else "fp32", trained="fp32")
    train = settings(steps * BATCH / len(rows), step=step)
    if frozen:
        lane = lora_lane(model, rows, train)
    else:
        moves = FullWeights(model, train, halves=True)
        lane = Lane("FT", dict(model.named_parameters()), train, len(rows), moves=moves)
    start = time.perf_counter()
    with open_step(model, [lane], rows, pad_id=0, device=DEVICE, numerics=numerics) as opened:
        [first] = opened([lane])
        first_loss = first.loss.item()
        first_step_s = time.perf_counter() - start
        result = fit(opened, [lane], DEVICE, folders=[None])[0]
        history = result.history
        lane.step = 0
        extra = {"profile": where_the_time_goes(opened, [lane])}
        extra |= (
            {"shapes": [vars(shape) for shape in opened.shapes], "max_tokens": opened.max_tokens}
            if hasattr(opened, "shapes")
            else {}
        )
    if frozen and step == "cuda_graph":
        detach(model)
        del opened
        gc.collect()
        torch.cuda.empty_cache()
        extra["products_ms"] = products_ms(model, round(statistics.fmean(history.step_tokens)))
    return {
        "first_step_s": round(first_step_s, 2),
        "first_loss": first_loss,
        **spread([1000 * s for s in history.step_s[5:]], history.step_tokens[5:]),
        "peak_gib": gib(result.cost.peak_allocated_bytes or 0),
        "reserved_gib": gib(torch.cuda.max_memory_reserved()),
        **extra,
    }


def peer(size: str, layout: str, work: str, steps: int, kind: str) -> dict[str, Any]:
    """What a user of transformers writes (`peft`, `full`), and what can be made of it. Words of
    `kind`, joined by `_`:

    qv             adapters on q and v alone                  checkpointing   gradient checkpointing
    nomask         no attention mask, widths padded to 16     liger           Liger's kernels
    bf16           nomask, adapters in bf16, no autocast
    packed         bf16, rows one after another, `varlen_attn`
    compiled       each layer by torch.compile (with bf16; with packed where that is named too)
    """
    words = set(kind.split("_"))
    strong = bool(words & {"bf16", "packed", "compiled"})
    rows = make_rows(work)
    model = build(size, layout)
    if "liger" in words:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    if "checkpointing" in words:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    layers = model.model.layers if layout == "llama" else model.transformer.h
    if kind != "full":
        model = with_peft(model, layout, "q+v" if "qv" in words else "q+k+v+o", bf16=strong)
    if "packed" in words:
        model.config._attn_implementation = "peer_varlen"
    if "compiled" in words:
        torch._dynamo.reset()
        for layer in layers:
            layer.compile(dynamic=True)
    model.train()
    moved = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, lr=1e-4, weight_decay=0.0, fused=True)
    cast = nullcontext() if kind == "full" or strong else torch.autocast("cuda", torch.bfloat16)
    return eager_steps(model, moved, optimizer, rows, steps, words=words, strong=strong, cast=cast)


def eager_steps(
    model: Any,
    moved: list[Any],
    optimizer: Any,
    rows: list[Tokens],
    steps: int,
    *,
    words: Collection[str] = ("nomask",),
    strong: bool = True,
    cast: AbstractContextManager[Any] | None = None,
    released: bool = False,
) -> dict[str, Any]:
    """The loop of a peer, timed; `released`: its backward pass moves what it has the gradient of,
    so that nothing is clipped."""
    order = Order(num_rows=len(rows), batch=BATCH, seed=0)
    losses, times, tokens = [], [], []
    start, first_step_s = time.perf_counter(), 0.0
    for number in range(steps):
        batch = [rows[n] for n in order.rows_of(number)]
        given = inputs_of(batch, rows, {*words}, strong)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        with cast or nullcontext():
            loss = model(**given).loss
        loss.backward()
        if not released:
            torch.nn.utils.clip_grad_norm_(moved, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        end.record()
        losses.append(loss.item())
        times.append(begin.elapsed_time(end))
        tokens.append(sum(map(len, batch)))
        first_step_s = first_step_s or time.perf_counter() - start
    return {
        "first_step_s": round(first_step_s, 2),
        "first_loss": losses[0],
        **spread(times[5:], tokens[5:]),
        "peak_gib": gib(torch.cuda.max_memory_allocated()),
        "reserved_gib": gib(torch.cuda.max_memory_reserved()),
    }


def this_call() -> str:
    """Card, minute and versions: figures are compared within one call."""
    return (
        f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d %H:%M')}, torch "
        f"{torch.__version__} (CUDA {torch.version.cuda})"
    )


def inputs_of(
    here: list[Tokens], rows: list[Tokens], words: set[str], strong: bool
) -> dict[str, Any]:
    """What the model of a peer is called with, on the device before the clock starts."""
    if "packed" in words:
        edges = [0]
        for row in here:
            edges.append(edges[-1] + len(row))
        ids = torch.tensor(
            [[token for row in here for token in (*row.prompt_ids, *row.target_ids)]]
        )
        labels = torch.tensor(
            [[token for row in here for token in (*[-100] * len(row.prompt_ids), *row.target_ids)]]
        )
        positions = torch.cat([torch.arange(len(row)) for row in here])[None]
        longest = -(-max(map(len, rows)) // 16) * 16
        given: dict[str, Any] = {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions,
            "cu_seq": torch.tensor(edges, dtype=torch.int32),
        }
        return {name: value.to(DEVICE) for name, value in given.items()} | {
            "longest": longest,
            "use_cache": False,
        }
    batch = collate(here, list(range(len(here))), 0)
    if not (strong or "nomask" in words):
        batch = batch.to(DEVICE)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
        }
    wide = -(-batch.input_ids.shape[1] // 16) * 16 - batch.input_ids.shape[1]
    ids, labels = (
        torch.nn.functional.pad(batch.input_ids, (0, wide)),
        torch.nn.functional.pad(batch.labels, (0, wide), value=-100),
    )
    return {"input_ids": ids.to(DEVICE), "labels": labels.to(DEVICE)}


def peer_varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    cu_seq: Any,
    longest: int,
    scaling: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Flash attention over packed rows, as transformers' own does with the package that is not
    installed everywhere."""
    q, k, v = (one.squeeze(0).transpose(0, 1).to(torch.bfloat16) for one in (query, key, value))
    out: Any = varlen_attn(
        q, k, v, cu_seq, cu_seq, longest, longest, scale=scaling, window_size=(-1, 0)
    )
    return out[None], None


AttentionInterface.register("peer_varlen", peer_varlen)


def with_peft(model: Any, layout: str, words: str = "q+k+v+o", *, bf16: bool = False) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets: Any = (
        [f"{word}_proj" for word in words.split("+")]
        if layout == "llama"
        else r".*attn\.(c_attn|c_proj)"
    )
    config = PeftConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=targets,
        fan_in_fan_out=layout == "gpt2",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=not bf16)


def generate(size: str, layout: str, work: str, whose: str, batch: int) -> dict[str, Any]:
    """Milliseconds an answer of a classification task at a batch: ours over the adapted model; HF
    `generate` over the adapted model with autocast (`hf`: as people write it) or over the merged
    one in bf16 (`merged`)."""
    from tsugiki.score.decode import generate_all

    rows = make_rows(work)
    model = build(size, layout)
    longest = max(len(row.target_ids) for row in rows)
    if whose == "ours":
        attach(model, LoraConfig(targets="q+k+v+o", rank=RANK, alpha=2 * RANK), seed=0)
        numerics = Numerics(compute="bf16", base="bf16", trained="fp32")

        def answer_all() -> list[list[int]]:
            return generate_all(
                model,
                [row.prompt_ids for row in rows],
                max_new_tokens=longest,
                batch=batch,
                stops=(),
                numerics=numerics,
            )
    else:
        adapted = with_peft(model, layout, bf16=whose == "merged")
        answering = (adapted.merge_and_unload() if whose == "merged" else adapted).eval()
        answering.config.use_cache = True
        cast = nullcontext() if whose == "merged" else torch.autocast("cuda", torch.bfloat16)
        by_length = (
            sorted(range(len(rows)), key=lambda place: len(rows[place].prompt_ids))
            if whose == "merged"
            else list(range(len(rows)))
        )

        def answer_all() -> list[list[int]]:
            answers: dict[int, list[int]] = {}
            for first in range(0, len(rows), batch):
                places = by_length[first : first + batch]
                part = [rows[place].prompt_ids for place in places]
                width = max(map(len, part))
                ids = torch.tensor(
                    [[0] * (width - len(prompt)) + list(prompt) for prompt in part], device=DEVICE
                )
                mask = torch.tensor(
                    [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part],
                    device=DEVICE,
                )
                with torch.inference_mode(), cast:
                    out = answering.generate(
                        input_ids=ids,
                        attention_mask=mask,
                        max_new_tokens=longest,
                        min_new_tokens=longest,
                        do_sample=False,
                        pad_token_id=0,
                        eos_token_id=1,
                    )
                answers |= dict(zip(places, out[:, width:].tolist(), strict=True))
            return [answers[place] for place in range(len(rows))]

    answers, seconds = [], []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        answers = answer_all()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "ms": round(1000 * seconds[-1] / len(rows), 4),
        "first_pass_ms": round(1000 * seconds[0] / len(rows), 4),
        "batch": batch,
        "n": len(rows),
        "new_tokens": longest,
        "answers": answers,
        "peak_gib": gib(torch.cuda.max_memory_allocated()),
    }


def spread(times: list[float], tokens: list[int]) -> dict[str, Any]:
    """`ms` is the median of all steps but the first five, `ms_late` of their second half: a padded
    width that was not met before costs a peer about 100 ms (its kernels are chosen and loaded), so
    that its early steps are slower than the rest of an epoch."""
    late = times[len(times) // 2 :]
    ordered = sorted(late)
    return {
        "ms": round(statistics.median(times), 3),
        "ms_late": round(statistics.median(late), 3),
        "ms_mean": round(statistics.fmean(times), 3),
        "ms_late_quartiles": [
            round(ordered[len(ordered) // 4], 3),
            round(ordered[3 * len(ordered) // 4], 3),
        ],
        "n": len(times),
        "times_ms": [round(one, 1) for one in times],
        "tokens_per_step": round(statistics.fmean(tokens), 1),
        "tokens_per_s": round(1000 * sum(tokens) / sum(times), 1),
        "tokens_per_s_median": round(
            statistics.median(1000 * count / ms for count, ms in zip(tokens, times, strict=True)), 1
        ),
    }


def where_the_time_goes(step: Any, lanes: list[Lane], steps: int = 5) -> dict[str, Any]:
    """Device milliseconds a step by kind of kernel, from PyTorch's profiler. Kernels that run side
    by side both count."""
    kinds = {
        "products": ("nvjet", "gemm", "cutlass_80", "splitK"),
        "attention": ("flash",),
        "elementwise (compiled)": ("triton_",),
    }
    spent: dict[str, float] = {}
    kernels = 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step(lanes)
        torch.cuda.synchronize()
    for event in profile.events():
        if event.device_type.name == "CUDA":
            kind = next(
                (
                    kind
                    for kind, marks in kinds.items()
                    if any(mark in event.name for mark in marks)
                ),
                "other",
            )
            spent[kind] = spent.get(kind, 0.0) + event.device_time / 1000 / steps
            kernels += 1
    return {
        "kernels_a_step": kernels / steps,
        **{f"{kind}_ms": round(ms, 3) for kind, ms in spent.items()},
    }


def products_ms(model: Any, tokens: int) -> float:
    """The base's own products of one step (forward, input gradient), and nothing else, back to
    back in one CUDA graph: no step over this library of products can be faster."""
    weights = []
    for paths in groups_of(model):
        modules = [model.get_submodule(path) for path in paths]
        parts = [
            (module.weight.t() if isinstance(module, Conv1D) else module.weight).detach()
            for module in modules
        ]
        weights.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    inputs = {
        width: torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16)
        for width in {side for weight in weights for side in weight.shape}
    }

    def work() -> None:
        for weight in weights:
            inputs[weight.shape[1]] @ weight.t()
        for weight in reversed(weights):
            inputs[weight.shape[0]] @ weight

    capturer = GraphCapturer(DEVICE)
    capturer.warm_up(work)
    graph = capturer.capture(work)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 3)


def floor_ms(size: str, layout: str, tokens: float) -> float:
    layers, width, _, mlp = SIZES[size]
    body = (
        layers * (4 * width * width + 3 * width * mlp)
        if layout == "llama"
        else layers * 12 * width * width
    )
    return round(1000 * max(4 * body * tokens / PEAK_FLOPS, 2 * 2 * body / BANDWIDTH), 2)


def gib(amount: int) -> float:
    return round(amount / 2**30, 2)


STRONG = ("peft_nomask", "peft_bf16", "peft_packed", "peft_compiled", "peft_packed_compiled")
BATCHES = (8, 64, 256)


def peer_case(kind: str, most: int = 1000) -> Callable[[str, str, str, int], dict[str, Any]]:
    return lambda size, layout, work, n: peer(size, layout, work, min(n, most), kind)


def generate_case(whose: str, batch: int) -> Callable[[str, str, str, int], dict[str, Any]]:
    return lambda size, layout, work, n: generate(size, layout, work, whose, batch)


CASES: dict[str, Callable[[str, str, str, int], dict[str, Any]]] = {
    "ours": ours,
    "ours_ft": lambda size, layout, work, n: ours(size, layout, work, n, method="full"),
    "ours_eager": lambda size, layout, work, n: ours(size, layout, work, min(n, 30), step="eager"),
    "peft": peer_case("peft"),
    **{kind: peer_case(kind) for kind in STRONG},
    **{
        f"{kind}_checkpointing": peer_case(f"{kind}_checkpointing", 14)
        for kind in ("peft", "peft_liger", *STRONG)
    },
    "peft_liger": peer_case("peft_liger", 40),
    "full": peer_case("full", 25),
    "generate_hf": generate_case("hf", 8),
    **{
        f"generate_{whose}_{batch}": generate_case(whose, batch)
        for whose in ("ours", "merged")
        for batch in BATCHES
    },
}


def wanted_cases(args: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """Liger's come last: it patches transformers for the whole process."""
    return sorted(_cases(args), key=lambda wanted: "liger" in wanted[3])


def _cases(args: argparse.Namespace) -> Iterator[tuple[str, str, str, str]]:
    for layout in args.layout:
        for pair in args.only:
            size, work = pair.split(":")
            for case in args.cases or default_cases(size, layout, work):
                yield layout, size, work, case


def default_cases(size: str, layout: str, work: str) -> list[str]:
    if work == "generate":
        return [
            "generate_hf",
            *(f"generate_{whose}_{batch}" for batch in BATCHES for whose in ("merged", "ours")),
        ]
    peers = (
        ["peft", "full"] if (size, work) != ("6.7b", "xlsum") else ["peft", "peft_checkpointing"]
    )
    peers += (
        STRONG
        if (size, work) != ("6.7b", "xlsum")
        else [*STRONG, "peft_packed_compiled_checkpointing"]
    )
    if layout == "llama":
        peers += (
            ["peft_liger"] if (size, work) != ("6.7b", "xlsum") else ["peft_liger_checkpointing"]
        )
    return [*peers, "ours", *(["ours_ft", "ours_eager"] if size == "1b" else [])]


def run(case: str, layout: str, size: str, work: str, steps: int) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return CASES[case](size, layout, "jnli" if work == "generate" else work, steps)
    except Exception as failure:  # what one peer cannot do is a result; the others go on
        return {"failed": f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"}


def same_first_loss(results: dict[str, Any]) -> None:
    """Every method starts from the same model and rows: the loss of step 1 must be one number
    (bf16 noise aside)."""
    losses = {case: one["first_loss"] for case, one in results.items() if "first_loss" in one}
    reference = losses.get("peft") or next(iter(losses.values()), 0.0)
    for case, loss in losses.items():
        assert abs(loss - reference) < 0.01 * reference, (
            f"{case}: step 1 has loss {loss}, the others {reference}: not the same work"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[
            "1b:jnli",
            "6.7b:jnli",
            "1b:jcommonsenseqa",
            "1b:xlsum",
            "6.7b:xlsum",
            "1b:generate",
        ],
    )
    parser.add_argument("--layout", nargs="*", default=["llama", "gpt2"])
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--table",
        action="store_true",
        help="make the summary of --out anew, print it as Markdown and measure nothing",
    )
    args = parser.parse_args()
    if args.table:
        known = json.loads(args.out.read_text(encoding="utf-8"))
        known["summary"] = summarise(known["cases"])
        args.out.write_text(
            json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(table(known))
        return
    kept: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"cases": {}}
    call = this_call()
    kept["about"] = {
        "batch": BATCH,
        "rank": RANK,
        "row_lengths": json.loads(LENGTHS.read_text())["about"],
    }
    for layout, size, work, case in wanted_cases(args):
        key = f"{size}_{work}" + ("" if layout == "llama" else "_gpt2")
        here = kept["cases"].setdefault(key, {})
        start = time.perf_counter()
        here[case] = run(case, layout, size, work, args.steps)
        if "tokens_per_step" in here[case]:
            here[case]["floor_ms"] = floor_ms(size, layout, here[case]["tokens_per_step"])
        here[case] |= {"seconds_in_all": round(time.perf_counter() - start, 1), "call": call}
        print(
            key,
            case,
            {
                k: v
                for k, v in here[case].items()
                if k not in ("answers", "shapes", "times_ms", "profile")
            },
            flush=True,
        )
        same_first_loss(here)
        compare_answers(here)
        kept["summary"] = summarise(kept["cases"])
        args.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare_answers(results: dict[str, Any]) -> None:
    """Counts equal answers instead of keeping them. With random weights tokens are often nearly
    tied, so some part."""
    for batch in BATCHES:
        mine, theirs = (
            results.get(f"generate_{whose}_{batch}", {}) for whose in ("ours", "merged")
        )
        if "answers" in mine and "answers" in theirs:
            mine["answers_equal_to_hf"] = sum(
                one == other
                for one, other in zip(mine.pop("answers"), theirs.pop("answers"), strict=True)
            )
    results.get("generate_hf", {}).pop("answers", None)


def table(kept: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = kept["about"]
    means = about["row_lengths"]["mean_tokens"].items()
    lines = [
        "# One optimiser step against the peers",
        "",
        f"Batch {about['batch']}, rank {about['rank']} on q+k+v+o, random weights of the paper's "
        "sizes, row lengths of real data (mean tokens a row: "
        f"{', '.join(f'{name} {mean}' for name, mean in means)}). "
        "Written by `benchmarks/step_vs_peers.py --table`; how each number is made stands in the "
        "script. Rows of one call may be compared; card and host "
        "of each stand under its table.",
        "",
        "ms: median of the second half of the steps (quartiles) · all: median of all but the first "
        "five · floor: products at 784 TFLOP/s or weights read twice at 3 TB/s · "
        "products: the base's own products alone, back to back in one CUDA graph · peak: allocated "
        "GiB · first: seconds to the first step, compiling and recording included.",
        "",
    ]
    for key, results in kept["cases"].items():
        marks = {
            call: f" {chr(97 + number)}"
            for number, call in enumerate(dict.fromkeys(one["call"] for one in results.values()))
        }
        marks = marks if len(marks) > 1 else dict.fromkeys(marks, "")
        lines += [
            f"## {key}",
            "",
            " · ".join(f"{mark} {call}".strip() for call, mark in marks.items()) + ".",
            "",
        ]
        lines += [
            "| | ms (quartiles) | all | tokens/s | peak | first | n |",
            "|---|---|---|---|---|---|---|",
        ]
        for case, one in (
            (f"{name}{marks[found['call']]}", found) for name, found in results.items()
        ):
            if "failed" in one:
                lines.append(
                    f"| {case} | out of memory | | | | | |"
                    if "Memory" in one["failed"]
                    else f"| {case} | {one['failed']} | | | | | |"
                )
            elif "ms_late" in one:
                low, high = one["ms_late_quartiles"]
                cells = [
                    f"{one['ms_late']:.1f} ({low:.1f}–{high:.1f})",
                    f"{one['ms']:.1f}",
                    f"{one['tokens_per_s_median']:,.0f}",
                    one["peak_gib"],
                    one["first_step_s"],
                    one["n"],
                ]
                lines.append(f"| {case} | " + " | ".join(map(str, cells)) + " |")
            else:
                lines.append(
                    f"| {case}, an answer | {one['ms']:.2f} | | | {one['peak_gib']} | | {one['n']} "
                    "|"
                )
        mine = results.get("ours", {})
        if "profile" in mine:
            spent = ", ".join(
                f"{name.removesuffix('_ms')} {ms:.2f}"
                for name, ms in mine["profile"].items()
                if name != "kernels_a_step"
            )
            lines += [
                "",
                f"Floor {mine['floor_ms']} ms, products alone {mine['products_ms']} ms. Where ours "
                "goes (ms of kernels, side by side ones both counted): "
                f"{spent}; {mine['profile']['kernels_a_step']:.0f} kernels.",
            ]
        lines.append("")
    return "\n".join(lines)


def summarise(cases: dict[str, Any]) -> dict[str, Any]:
    """For each work: ours against the loop people write (`ratio`; with checkpointing where that
    does not fit without), and against the fastest peer of the same call (`ratio_strongest`).

    Late steps are compared, when the peer has met its widths; for XLSum-like rows tokens a second,
    by medians. Generation at equal batches.
    """
    summary = {}
    for key, results in cases.items():
        if "generate" in key:
            summary[key] = {
                str(batch): {
                    "ours_ms": mine["ms"],
                    "merged_ms": theirs["ms"],
                    "ratio": round(theirs["ms"] / mine["ms"], 2),
                }
                for batch in BATCHES
                if "ms" in (mine := results.get(f"generate_ours_{batch}", {}))
                and "ms" in (theirs := results.get(f"generate_merged_{batch}", {}))
            }
            continue
        mine = results.get("ours", {})
        rivals = {
            name: one
            for name, one in results.items()
            if name.startswith("peft") and "ms_late" in one and one.get("call") == mine.get("call")
        }
        written = next((name for name in ("peft", "peft_checkpointing") if name in rivals), None)
        if "ms_late" not in mine or written is None:
            continue

        def faster(one: dict[str, Any], mine: dict[str, Any] = mine, key: str = key) -> float:
            late = one["ms_late"] / mine["ms_late"]
            return round(
                mine["tokens_per_s_median"] / one["tokens_per_s_median"]
                if "xlsum" in key
                else late,
                2,
            )

        strongest = min(rivals, key=lambda name: faster(rivals[name]))
        tried = any(name.removesuffix("_checkpointing") in STRONG for name in rivals)
        summary[key] = {
            "ours_ms": mine["ms_late"], "peer": written, "peer_ms": rivals[written]["ms_late"],
            "ratio": faster(rivals[written]),
            "ours_tokens_per_s": mine["tokens_per_s_median"],
            "peer_tokens_per_s": rivals[written]["tokens_per_s_median"],
            "floor_ms": mine.get("floor_ms"), "products_ms": mine.get("products_ms"),
            "peak_gib": mine["peak_gib"],
            "peer_peak_gib": rivals[written]["peak_gib"], "first_step_s": mine.get("first_step_s"),
        }  # fmt: skip
        if tried:
            summary[key] |= {
                "strongest": strongest, "strongest_ms": rivals[strongest]["ms_late"],
                "ratio_strongest": faster(rivals[strongest]),
                "strongest_tokens_per_s": rivals[strongest]["tokens_per_s_median"],
                "strongest_peak_gib": rivals[strongest]["peak_gib"],
            }  # fmt: skip
    return summary


if __name__ == "__main__":
    main()
