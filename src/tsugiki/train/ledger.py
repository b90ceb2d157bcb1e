"""What training holds on a CUDA device, item by item, counted from sizes before anything is loaded.

    weights      of the base, as they are kept
    adapters     in fp32, with the copy that the matmuls read
    gradients    of what is trained
    moments      AdamW's
    activations  what the largest backward pass reads again, and one layer's own gradients
    logits       of the trained tokens, with their gradients
    workspace    of the libraries, of recording, and what the allocator cannot use

It counts the step that CUDA graphs record (`train/cuda_graph_step`): packed rows, logits where
there is a target, bf16 matmuls. The workspace's two factors were fitted on one half of the cases of
`benchmarks/memory.json`; the total is within a tenth on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import nn

from tsugiki.config.run import TrainConfig
from tsugiki.data.batch import Order, num_steps
from tsugiki.data.packing import split_rows
from tsugiki.data.prompts import Tokens
from tsugiki.errors import ModelError
from tsugiki.fast.adamw import BLOCK as MOMENT_BLOCK
from tsugiki.fast.short_document_attention import LONGEST as SHORT
from tsugiki.model.layouts import groups_of, in_features, out_features
from tsugiki.model.nf4 import BLOCK

READ_BY = {  # what an adapted matmul reads (`Sizes.token`); the others read what is kept anyhow
    **dict.fromkeys(("q", "k", "v", "qkv"), "attention"),
    **dict.fromkeys(("gate", "up", "fc"), "mlp"),
    **dict.fromkeys(("down", "proj"), "mlp_out"),
}
# Fitted (benchmarks/memory.py --fit).
WORKSPACE = {"bytes": 420e6, "share": 0.034}
ALL_READ = frozenset({"attention", "mlp", "mlp_out"})
LOGIT_BYTES = 2 + 4 + 4 + 2  # bf16, fp32, their gradients
# Of full fine-tuning with bf16 matmuls, a parameter: by [train] weights, by moments, its gradient,
# and the sum of gradients where a step takes several backward passes.
WEIGHT_BYTES = {"fp32": 4, "24bit": 3}
MOMENT_BYTES = {"fp32": 8.0, "bf16": 4.0, "8bit": 2 + 2 / MOMENT_BLOCK}
WHOLE_GRADIENT_BYTES, SUM_BYTES = 2, 4
ADAPTER_BYTES = {"adapters": 4 + 2, "gradients": 4 + 2 + 2, "moments": 8}
MOST_LANES = 96  # beyond, a step only gets longer: matmuls are bound by arithmetic long before
STEPS_LOOKED_AT = 20_000  # of an order, for its largest


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a model, what its memory depends on: parameters in all, in the layers' matmuls, in the
    largest of them (those over one input being one), and widths."""

    parameters: int
    in_layers: int
    largest: int
    layers: int
    width: int
    query: int
    key_value: int
    mlp: int
    glu: bool
    rotary: bool
    vocab: int

    def stored(self, kept: str) -> float:
        """Bytes of a frozen base that is kept in bf16, fp32 or nf4 (beside bf16)."""
        if kept == "nf4":
            rest = self.parameters - self.in_layers
            # codes, an fp32 scale a block, and the buffer that one group is dense in
            return 2 * rest + self.in_layers * (0.5 + 4 / BLOCK) + 2 * self.largest
        return self.parameters * {"bf16": 2, "fp32": 4}[kept]

    def token(self, reads: frozenset[str], long: bool) -> int:
        """Values that one token leaves behind in every layer: what both norms read; queries, keys,
        values (rotated ones too, where rows are `long`) and what attention gives; what the MLP's
        activation reads. And what trained matmuls read of `reads`: `attention`, `mlp` and
        `mlp_out` (of the layer's matmuls those that begin there)."""
        values = 2 * self.width + 2 * self.query + 2 * self.key_value
        values += self.mlp * (2 if self.glu else 1)
        if long and self.rotary:
            values += self.query + self.key_value
        read = {"attention": self.width, "mlp": self.width, "mlp_out": self.mlp}
        return values + sum(read[name] for name in reads)


def sizes_of(model: Any) -> Sizes:
    """Sizes of a model, with or without its weights."""
    config = model.config
    try:
        groups = groups_of(model)
    except ModelError:  # only full fine-tuning takes such a model
        groups = [[name] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    of_group = [
        sum(
            in_features(layer) * out_features(layer)
            for layer in (getattr(part, "base", part) for part in map(model.get_submodule, group))
        )
        for group in groups
    ]
    width = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or 1)  # Mamba has none
    head = int(getattr(config, "head_dim", None) or width // heads)
    mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        in_layers=sum(of_group),
        largest=max(of_group, default=0),
        layers=int(getattr(config, "num_hidden_layers", None) or 1),
        width=width,
        query=heads * head,
        key_value=int(getattr(config, "num_key_value_heads", None) or heads) * head,
        mlp=int(mlp or 4 * width),
        glu=any(path.endswith("gate_proj") for group in groups for path in group),
        rotary=any(name.endswith("rotary_emb") for name, _ in model.named_modules()),
        vocab=int(config.vocab_size),
    )


@dataclass(frozen=True, kw_only=True)
class Load:
    """The largest backward pass: rows of a lane in it, their tokens, those of them that are
    trained, and how many lanes; the longest row alone. `recomputed`: layers are computed twice, so
    that they keep their input alone. `by_layer`: of full fine-tuning, no more gradients are kept
    than one layer's."""

    rows: int
    tokens: int
    targets: int
    longest: int
    lanes: int = 1
    recomputed: bool = False
    by_layer: bool = False


def load_of(rows: Sequence[Tokens], trains: Sequence[TrainConfig]) -> Load:
    """The largest backward pass of runs that train together over these rows."""
    lengths = np.array([len(row) for row in rows])
    targets = np.array([len(row.target_ids) for row in rows])
    orders: dict[Order, tuple[int, TrainConfig]] = {}
    for train in trains:
        order = Order(num_rows=len(rows), batch=train.batch, seed=train.seed)
        steps = min(num_steps(len(rows), train.batch, train.epochs), STEPS_LOOKED_AT)
        if order not in orders or orders[order][0] < steps:
            orders[order] = steps, train
    parts = [
        part
        for order, (steps, train) in orders.items()
        for step in range(steps)
        for part in split_rows(
            order.rows_of(step), lengths, max_rows=train.micro_batch, max_tokens=None
        )
    ]
    return Load(
        rows=max(train.micro_batch or train.batch for train in trains),
        tokens=max(int(lengths[part].sum()) for part in parts),
        targets=max(int(targets[part].sum()) for part in parts),
        longest=int(lengths.max()),
        lanes=len(trains),
    )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Bytes by what holds them."""

    weights: float
    adapters: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    workspace: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.items().values())

    @property
    def fixed(self) -> float:
        """What no shorter or fewer rows make less."""
        return self.weights + self.adapters + self.gradients + self.moments

    def items(self) -> dict[str, float]:
        """In the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def ledger_of_adapters(
    sizes: Sizes, kept: str, adapter: int, reads: frozenset[str], load: Load
) -> Ledger:
    """LoRA over a base kept so, each lane's adapters of so many parameters; `reads`: see
    `Sizes.token`."""
    return _with_rows(
        sizes,
        load,
        reads,
        weights=sizes.stored(kept),
        **{name: load.lanes * adapter * each for name, each in ADAPTER_BYTES.items()},
    )


def ledger_of_weights(sizes: Sizes, kept: str) -> Ledger:
    """What is only asked: a quarter of what is left is for its answers (`score/decode`)."""
    return Ledger(weights=sizes.stored(kept), workspace=WORKSPACE["bytes"])


def ledger_in_full(sizes: Sizes, train: TrainConfig, load: Load) -> Ledger:
    """Full fine-tuning with bf16 matmuls."""
    summed = train.micro_batch not in (None, train.batch)
    kept = sizes.largest if load.by_layer else sizes.parameters
    gradients = WHOLE_GRADIENT_BYTES * kept + (SUM_BYTES * sizes.parameters if summed else 0)
    made = _with_rows(
        sizes,
        load,
        ALL_READ,
        weights=sizes.parameters * WEIGHT_BYTES[train.weights],
        moments=sizes.parameters * MOMENT_BYTES[train.moments],
    )
    # Gradients come where activations go, once one of these is as large as one of those: the
    # allocator makes no large block of small ones.
    smaller = made.activations * min(1.0, sizes.width / max(1, load.tokens))
    return replace(made, gradients=max(0.0, gradients + smaller - made.activations))


def ledger_of_encoder(sizes: Sizes, load: Load) -> Ledger:
    """An encoder's fine-tuning by the eager step: fp32 weights with the bf16 copies that autocast
    keeps, and twice the values of a packed step, since nothing is compiled. Coarse: nothing of it
    was fitted."""
    made = _with_rows(sizes, load, ALL_READ, weights=(4 + 2) * sizes.parameters)
    return replace(
        made,
        gradients=4.0 * sizes.parameters,
        moments=8.0 * sizes.parameters,
        activations=2 * made.activations,
        logits=0.0,
    )


def _with_rows(sizes: Sizes, load: Load, reads: frozenset[str], **fixed: float) -> Ledger:
    tokens, long = load.tokens * load.lanes, load.longest > SHORT
    token = sizes.token(reads, long)
    kept = sizes.layers * (sizes.width if load.recomputed else token)
    values = kept + token * (2 if load.recomputed else 1)  # one layer's gradients, its values anew
    activations = 2 * tokens * values
    logits = load.targets * load.lanes * sizes.vocab * LOGIT_BYTES
    workspace = WORKSPACE["bytes"] + WORKSPACE["share"] * (activations + logits)
    return Ledger(**fixed, activations=activations, logits=logits, workspace=workspace)


def smaller_loads(load: Load, *, frozen: bool) -> Iterator[Load]:
    """How a step can be made to fit, the fastest first, as `train/open_step` tries it: over a
    frozen base in backward passes of half as many tokens, then with layers computed twice; in full
    without cutting, gradients by layer at last."""
    if not frozen:
        for by_layer in (False, True):
            for again in (False, True):
                yield replace(load, by_layer=by_layer, recomputed=again)
        return
    for again in (False, True):
        tokens, part = load.tokens, 1.0
        while tokens >= min(load.longest, load.tokens):
            yield replace(
                load, tokens=tokens, targets=max(1, round(load.targets * part)), recomputed=again
            )
            tokens, part = tokens // 2, part / 2


def first_that_fits(
    ledger_of: Callable[[Load], Ledger], tried: Iterator[Load], free: float
) -> Load | None:
    """The first of these loads that so many bytes hold."""
    return next((load for load in tried if ledger_of(load).total <= free), None)


def rows_that_fit(ledger_of: Callable[[Load], Ledger], load: Load, free: float) -> int:
    """The largest backward pass in rows like these that so many bytes hold; 0 for none."""
    whole, none = ledger_of(load).total, ledger_of(replace(load, tokens=0, targets=0)).total
    return max(0, int((free - none) / ((whole - none) / load.rows)))


def lanes_that_fit(ledger_of: Callable[[Load], Ledger], load: Load, free: float, most: int) -> int:
    """How many lanes, from 1 to `most`, so many bytes hold together; every lane's load alike."""
    counts = range(min(most, MOST_LANES), 1, -1)
    return next(
        (count for count in counts if ledger_of(replace(load, lanes=count)).total <= free), 1
    )
