"""Packed rows, fused products and the reference give one result: losses, gradients and the trained
adapter."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.config.run import LoraConfig
from tsugiki.data.packing import PackableRows, PackedBatch, PackedShape
from tsugiki.errors import ModelError, RunError
from tsugiki.fast.attention import PACKED, attending
from tsugiki.fast.cuda_graphs import why_no_cuda_graphs
from tsugiki.fast.fused_linears import can_fuse, fused
from tsugiki.fast.rotary import deferred_rope
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import Numerics
from tsugiki.score.decode import generate_all
from tsugiki.score.predict import generate_ids
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import open_step, recomputed_layers
from tsugiki.train.packed_forward import PackedForward
from tsugiki.train.step import EagerStep

# Idle tokens, documents and targets beyond the rows.
ROOM = PackedShape(tokens=7, documents=2, longest=8, targets=3)


def train_packed(model: torch.nn.Module, lane: Lane, recomputed: bool = False) -> list[float]:
    """What the captured step does, without the capture."""
    packable, losses = PackableRows.of(rows()), []
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        rewired.enter_context(deferred_rope(model))
        compute_copy = rewired.enter_context(fused(model)) if can_fuse(model) else None
        if recomputed:
            rewired.enter_context(recomputed_layers(model))
        forward = PackedForward(model, [lane], FP32, CPU, compute_copy)
        while not lane.done:
            numbers = lane.rows()
            exact = packable.exact_shape(numbers)
            shape = PackedShape(
                **{
                    name: getattr(exact, name) + getattr(ROOM, name)
                    for name in ("tokens", "documents", "longest", "targets")
                }
            )
            buffer = torch.zeros(shape.size, dtype=torch.long)
            packable.pack(numbers, shape, buffer.numpy(), num_targets=exact.targets, step=lane.step)
            losses.append(forward(PackedBatch(shape=shape, buffer=buffer)).item())
            lane.set_rate()
            lane.move()
            for parameter in lane.moved:
                parameter.grad.zero_()
            lane.count()
            if compute_copy:
                compute_copy.refresh()
    return losses


def wide_llama() -> LlamaForCausalLM:
    """As many key heads as query heads, and biases."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            attention_bias=True,
        )
    ).eval()


@pytest.mark.parametrize("kind", ["llama", "wide", "gpt2"])
@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("lora", LoraConfig(targets="q+v", rank=4)),
        ("lora", LoraConfig(targets="k", rank=3)),
        ("lora", LoraConfig(targets="all-linear", rank=4, alpha=8)),
        ("lora", LoraConfig(targets="q+k+v+o", rank=4, dropout=0.3)),
        ("full", None),
    ],
)
def test_packed_equals_padded(kind: str, method: str, lora: LoraConfig | None) -> None:
    make = {**build.MODELS, "wide": wide_llama}[kind]
    settings = config(epochs=2, learning_rate=1e-2)
    model = make()
    padded = lane_of(model, settings, method, 10, lora)
    reference = fit(EagerStep(model, rows(), 3, CPU, FP32), [padded], CPU, folders=[None])[
        0
    ].history.loss
    model = make()
    packed = lane_of(model, settings, method, 10, lora)
    before = {
        name: (type(module), getattr(module, "weight", None))
        for name, module in model.named_modules()
    }
    weights = (
        {name: value.clone() for name, value in model.state_dict().items()}
        if method == "lora"
        else {}
    )
    assert train_packed(model, packed) == pytest.approx(reference, rel=1e-5)
    for name, parameter in padded.parameters.items():
        assert torch.allclose(parameter, packed.parameters[name], atol=2e-4), name
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: kind for name, (kind, _) in before.items()
    }
    assert all(
        torch.equal(value, weights[name])
        for name, value in model.state_dict().items()
        if "lora" not in name and method == "lora"
    )


OTHERS = {
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {"intermediate_size": 64}),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3},
    ),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_architectures_whose_layout_lora_does_not_know_are_packed_alike(kind: str) -> None:
    """Full fine-tuning needs no layout, and packed rows only an attention that can be exchanged."""
    model_class, config_class, extra = OTHERS[kind]
    sizes = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    losses = []
    for packed in (False, True):
        torch.manual_seed(0)
        model = model_class(config_class(**sizes, **extra)).eval()
        no_dropout(model)
        lane = lane_of(model, config(epochs=2), "full", 10)
        losses.append(
            train_packed(model, lane)
            if packed
            else fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])[
                0
            ].history.loss
        )
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_layers_train_alike(kind: str) -> None:
    losses = []
    for recomputed in (False, True):
        model = build.MODELS[kind]()
        lane = lane_of(
            model, config(epochs=2), "lora", 10, LoraConfig(targets="q+v", rank=4, dropout=0.1)
        )
        losses.append(train_packed(model, lane, recomputed))
    assert losses[0] == losses[1]


def test_only_the_documents_own_tokens_are_seen() -> None:
    model = build.llama()
    packable = PackableRows.of(rows())
    outs = []
    for numbers in ([4, 7], [2, 4]):
        shape = packable.exact_shape(numbers)
        buffer = torch.zeros(shape.size, dtype=torch.long)
        packable.pack(numbers, shape, buffer.numpy(), num_targets=1, step=0)
        batch = PackedBatch(shape=shape, buffer=buffer)
        with attending(model, PACKED), torch.no_grad():
            out = model.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                cu_seq=batch.cu_seq,
                longest=shape.longest,
            )
        outs.append(out.last_hidden_state[0][batch.rows == 4])
    assert torch.allclose(outs[0], outs[1], atol=1e-6)


def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return MistralForCausalLM(MistralConfig(**sizes, sliding_window=3)).eval()


def test_a_sliding_window_is_kept() -> None:
    lora, losses = LoraConfig(targets="q+v", rank=4), []
    for packed in (False, True):
        model = mistral()
        lane = lane_of(model, config(epochs=2), "lora", 10, lora)
        losses.append(
            train_packed(model, lane)
            if packed
            else fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])[
                0
            ].history.loss
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    model = mistral()
    model.config.sliding_window = None
    wide = MistralForCausalLM(MistralConfig(**{**model.config.to_dict(), "sliding_window": None}))
    wide.load_state_dict(model.state_dict())
    lane = lane_of(wide, config(epochs=2), "lora", 10, lora)
    assert train_packed(wide, lane) != pytest.approx(losses[0], rel=1e-5), "the window matters here"
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(2 + n % 9)) for n in range(12)
    ]
    model = mistral()
    plain = generate_ids(model, prompts, max_new_tokens=6, stops=(), pad_id=3)
    assert generate_all(model, prompts, max_new_tokens=6, batch=8, stops=(), numerics=FP32) == plain


def test_what_packed_attention_does_not_do_is_refused() -> None:
    model = build.llama()
    edges = torch.tensor([0, 6])
    with (
        attending(model, PACKED),
        pytest.raises(
            ModelError,
            match=r'softcap = 30.0 is not implemented for packed rows.*train.step = "eager"',
        ),
    ):
        model.model(
            input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]),
            position_ids=torch.arange(6)[None],
            cu_seq=edges,
            longest=6,
            softcap=30.0,
        )


def test_models_that_cannot_be_recorded_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.fast import cuda_graphs as capture

    # This machine's Triton is not the question.
    monkeypatch.setattr(capture, "missing_tools", lambda: None)
    bf16, cuda = Numerics(compute="bf16", base="bf16", trained="fp32"), torch.device("cuda")
    model = build.llama()
    assert why_no_cuda_graphs(model, cuda, bf16) is None
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert "depend on the longest row" in (why_no_cuda_graphs(model, cuda, bf16) or "")
    other = build.gpt2()
    assert why_no_cuda_graphs(other, cuda, bf16) is None
    other.config.attn_logit_softcapping = 50.0
    assert "caps its attention scores" in (why_no_cuda_graphs(other, cuda, bf16) or "")


def test_a_captured_step_that_cannot_be_is_refused_and_auto_takes_the_plain_one() -> None:
    model = build.llama()
    lane = lane_of(model, config(step="cuda_graph"), "lora", 10)
    with (
        pytest.raises(
            RunError, match=r'train.step = "cuda_graph": it needs a CUDA device, this is cpu'
        ),
        open_step(model, [lane], rows(), pad_id=3, device=CPU, numerics=FP32),
    ):
        pass
    lane.config = config()
    with open_step(model, [lane], rows(), pad_id=3, device=CPU, numerics=FP32) as step:
        assert step.kind == "eager"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_in_the_middle_of_training_are_those_of_the_plain_model(kind: str) -> None:
    """Validation is looked at while the model is rewired: the same adapters answer."""
    model = build.MODELS[kind](seed=5)
    lane = lane_of(model, config(epochs=2), "lora", 10)
    train_packed(model, lane)
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(2 + n % 9)) for n in range(12)
    ]
    plain = generate_ids(model, prompts, max_new_tokens=6, stops=(), pad_id=3)
    with attending(model, PACKED), fused(model):
        assert (
            generate_all(model, prompts, max_new_tokens=6, batch=8, stops=(), numerics=FP32)
            == plain
        )
