"""A look at a loaded model with a few real tokens, instead of lists of names: does it do what
training and generation rely on?

logits       head(backbone(x)) are the model's own logits: the loss reads the output layer
             itself, generation asks the model
causal       what comes later changes nothing before it
padding      a row padded on the right is the row alone
cache        decoding token by token over a cache, padded on the left, is one full pass
packing      of two packed rows the first does not move the second, by a bit (asked before
             rows are packed: `rows_stay_apart`)

The first three are refused when they fail: training would be of another model. A cache that
differs is left out, packing too: both have an eager path, which is slower.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache

from tsugiki.errors import ModelError, first_line
from tsugiki.words import Message

PROBE = (
    "東京都の公園で、犬と猫が元気に走っています。質問に答えてください。それは何色ですか？　1. "
    "青　2. 赤　3. 白"
)
TOKENS = 24
# the largest logit of the look: caps and scales show however small a model's own logits are
LOUD = 100.0
_LOOKS: WeakKeyDictionary[Any, Look] = WeakKeyDictionary()
_APART: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen. `cached` says whether decoding may use a cache and padding."""

    cached: bool = True

    @property
    def notes(self) -> list[str]:
        """What a user should know of it."""
        return [] if self.cached else [Message("note.without_cache")]


def look_of(model: Any) -> Look:
    """What was seen when the model was loaded; the usual where nobody looked."""
    return _LOOKS.get(model, Look())


@torch.no_grad()
def look_at(model: Any, tokenizer: Any, name: str, computing: AbstractContextManager[Any]) -> Look:
    """Looks, and keeps what was seen with the model; `computing` is what it is trained under where
    its weights are in 16 bits.

    Raises:
        ModelError: training and generation would be of two models (what differs is named), or the
            model cannot be run at all.
    """
    with naming(name), computing:
        ids = probe_ids(model, tokenizer)
        backbone, head = split(model)
        looks_ahead(backbone, ids)
        loss_is_of_the_model(model, backbone, head, ids)
        padding_counts(backbone, ids)
        seen = Look(cached=cache_agrees(model, ids))
    _LOOKS[model] = seen
    return seen


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Within it whatever goes wrong is a `ModelError` of the model of this name, but for memory."""
    try:
        yield
    except ModelError as said:
        raise ModelError(f"model {name}: {said}") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as broken:
        raise ModelError(
            f"model {name}: cannot be run on a few tokens: {first_line(broken)}"
        ) from broken


def probe_ids(model: Any, tokenizer: Any) -> torch.Tensor:
    """[1, t] ids of a Japanese text that the model has rows for."""
    rows = model.get_input_embeddings().weight.shape[0]
    longest = min(TOKENS, int(getattr(model.config, "max_position_embeddings", 0) or TOKENS))
    tokens = [
        token
        for token in tokenizer(PROBE * 2, add_special_tokens=False)["input_ids"]
        if token < rows
    ]
    tokens = (tokens or list(range(rows))) * TOKENS
    return torch.tensor([tokens[:longest]], device=next(model.parameters()).device)


def split(model: Any) -> tuple[Callable[..., torch.Tensor], nn.Module]:
    """(ids and mask → last hidden states, the output layer), as the loss reads them."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: has no output layer to read logits from")

    def backbone(ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.ones_like(ids) if mask is None else mask
        hidden: torch.Tensor = model.base_model(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return hidden

    return backbone, head


def loss_is_of_the_model(
    model: Any, backbone: Callable[..., torch.Tensor], head: nn.Module, ids: torch.Tensor
) -> None:
    """Raises `ModelError` when the model changes its logits after the output layer, by a scale or
    a cap, say.

    Both sides are made loud first, in fp32: a cap at 30 cannot be seen at a random model's logits
    of .3.
    """
    hidden = backbone(ids)
    logits = head(hidden).float()
    refuse_not_finite(logits)
    factor = LOUD / float(logits.abs().max().clamp(min=1e-20))
    loud = head.register_forward_hook(lambda module, given, out: out.float() * factor)
    try:
        ours = head(hidden)
        theirs = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits.float()
    finally:
        loud.remove()
    allowed = LOUD * (1e-4 if plain_fp32(model) else 2e-2)
    if ours.shape != theirs.shape or not bool(((ours - theirs).abs() <= allowed).all()):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output layer (a scale or a cap): "
            "training and generation would use different ones, "
            "which is not implemented"
        )


def refuse_not_finite(states: torch.Tensor) -> None:
    if not bool(states.isfinite().all()):
        raise ModelError(
            "its logits are not finite numbers: weights are damaged, or it computes in too small a "
            "type"
        )


def plain_fp32(model: Any) -> bool:
    return next(model.parameters()).dtype == torch.float32


def _tolerance(states: torch.Tensor) -> float:
    """Of relative norms between one computation and the same in another shape."""
    return 1e-3 if states.dtype == torch.float32 else 0.1


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """‖first - second‖ / ‖second‖ in fp32; infinite where either is not finite."""
    scale = second.float().norm().clamp(min=1e-20)
    distance = float((first.float() - second.float()).norm() / scale)
    return distance if math.isfinite(distance) else math.inf


def looks_ahead(backbone: Callable[..., torch.Tensor], ids: torch.Tensor) -> None:
    """Raises `ModelError` when later tokens move what stands before them."""
    half = max(1, ids.shape[1] // 2)
    changed = ids.clone()
    changed[0, half:] = ids[0, half:].flip(0).roll(1)
    before, after = backbone(ids)[:, :half], backbone(changed)[:, :half]
    refuse_not_finite(before)
    # Of one shape: nearly bit-equal in any type.
    if _distance(after, before) > (1e-3 if before.dtype == torch.float32 else 0.03):
        raise ModelError(
            "later tokens change what stands before them: it is not a causal language model (an "
            "encoder, perhaps)"
        )


def padding_counts(backbone: Callable[..., torch.Tensor], ids: torch.Tensor) -> None:
    """Raises `ModelError` when a row in a batch, padded on the right, is not what it is alone."""
    short = ids[:, : max(1, ids.shape[1] // 2)]
    both, mask = ids.repeat(2, 1), torch.ones_like(ids).repeat(2, 1)
    both[1, short.shape[1] :], mask[1, short.shape[1] :] = ids[0, 0], 0
    unpadded, padded = backbone(short), backbone(both, mask)[1:, : short.shape[1]]
    if _distance(padded, unpadded) > _tolerance(unpadded):
        raise ModelError(
            "a row padded on the right differs from the row alone, so a batch would train "
            "something else"
        )


def cache_agrees(model: Any, ids: torch.Tensor) -> bool:
    """Whether two prompts of unlike lengths, padded on the left and written on token by token over
    a cache, give the logits of full passes."""
    whole, start = ids.shape[1], max(1, ids.shape[1] - 3)
    short = max(1, start // 2)
    # The second begins later, and is written on with the same tokens.
    rows = [ids[0], ids[0, start - short :]]
    batch = torch.full((2, start), int(ids[0, 0]), device=ids.device)
    mask = torch.zeros_like(batch)
    batch[0], mask[0] = ids[0, :start], 1
    batch[1, start - short :], mask[1, start - short :] = ids[0, start - short : start], 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    kept = {
        cache_argument(model): DynamicCache(config=model.config),
        "use_cache": True,
        "logits_to_keep": 1,
    }
    steps = []
    try:
        for position in range(start, whole + 1):
            steps.append(
                model(input_ids=batch, attention_mask=mask, position_ids=positions, **kept).logits[
                    :, -1
                ]
            )
            if position < whole:
                batch = ids[:, position : position + 1].repeat(2, 1)
                mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
                positions = positions[:, -1:] + 1
    except (
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        IndexError,
        NotImplementedError,
    ) as broken:
        if isinstance(broken, torch.OutOfMemoryError):
            raise
        return False  # it takes no cache of this kind, or no positions
    written = torch.stack(steps, dim=1)
    for number, row in enumerate(rows):
        full = model(
            input_ids=row[None], attention_mask=torch.ones_like(row)[None], use_cache=False
        ).logits[0, -written.shape[1] :]
        if _distance(written[number], full) > _tolerance(full):
            return False
    return True


def cache_argument(model: Any) -> str:
    """transformers renamed `past_key_values` to `cache` in 5.2x; both are in use under our lowest
    and newest version."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.no_grad()
def rows_stay_apart(
    model: Any, run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
) -> bool:
    """Whether packed rows are independent: of two rows of fixed lengths the first is changed, and
    the second must not move by a bit.

    Args:
        run: (ids [n], positions [n], edges [3]) → hidden states [n, d] of the packed rows. Asked
            once for each model.
    """
    if model not in _APART:
        device = next(model.parameters()).device
        rows = model.get_input_embeddings().weight.shape[0]
        drawn = torch.Generator().manual_seed(0)
        first, second = (
            torch.randint(0, rows, (2, 16), generator=drawn).to(device) for _ in range(2)
        )
        positions = torch.arange(16, device=device).repeat(2)
        edges = torch.tensor([0, 16, 32], dtype=torch.int32, device=device)
        try:
            states = [
                run(torch.cat([before, second[0]]), positions, edges)[16:] for before in first
            ]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a layer that takes no packed rows, whatever it raises
            states = []
        _APART[model] = bool(states) and torch.equal(*states) and bool(states[0].isfinite().all())
    return _APART[model]
