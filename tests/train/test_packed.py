"""Packed rows, fused products and the reference give one result: losses, gradients and the trained adapter."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests import tiny
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.config import LoraConfig
from tsugiki.data.packing import PackableRows, PackedBatch, PackedShape
from tsugiki.errors import ModelError, RunError
from tsugiki.model.attention import PACKED, attending
from tsugiki.model.fused import can_fuse, fused
from tsugiki.train.captured import PackedForward, open_step, recomputed_layers
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane
from tsugiki.train.step import EagerStep

ROOM = PackedShape(tokens=7, documents=2, longest=8, targets=3)  # idle tokens, documents and targets beyond the rows


def train_packed(model: torch.nn.Module, lane: Lane, recomputed: bool = False) -> list[float]:
    """What the captured step does, without the capture."""
    packable, losses = PackableRows.of(rows()), []
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        shadow = rewired.enter_context(fused(model, lane.flat)) if lane.flat is not None and can_fuse(model) else None
        if recomputed:
            rewired.enter_context(recomputed_layers(model))
        forward = PackedForward(model, lane, FP32, CPU, shadow)
        while not lane.done:
            numbers = lane.rows()
            exact = packable.exact_shape(numbers)
            shape = PackedShape(**{name: getattr(exact, name) + getattr(ROOM, name) for name in ("tokens", "documents", "longest", "targets")})
            buffer = torch.zeros(shape.size, dtype=torch.long)
            packable.pack(numbers, shape, buffer.numpy(), num_targets=exact.targets, step=lane.step)
            losses.append(forward(PackedBatch(shape=shape, buffer=buffer)).item())
            lane.set_rate()
            lane.move()
            for parameter in lane.moved:
                parameter.grad.zero_()
            lane.count()
            if shadow:
                shadow.refresh()
    return losses


def wide_llama() -> LlamaForCausalLM:
    """As many key heads as query heads, and biases."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attention_bias=True)
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
    make = {**tiny.MODELS, "wide": wide_llama}[kind]
    settings = config(epochs=2, learning_rate=1e-2)
    model = make()
    padded = lane_of(model, settings, method, 10, lora)
    reference = fit(EagerStep(model, rows(), 3, CPU, FP32), [padded], CPU, folders=[None])[0].history.loss
    model = make()
    packed = lane_of(model, settings, method, 10, lora)
    before = {name: (type(module), getattr(module, "weight", None)) for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()} if method == "lora" else {}
    assert train_packed(model, packed) == pytest.approx(reference, rel=1e-5)
    for name, parameter in padded.parameters.items():
        assert torch.allclose(parameter, packed.parameters[name], atol=2e-4), name
    assert {name: type(module) for name, module in model.named_modules()} == {name: kind for name, (kind, _) in before.items()}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if "lora" not in name and method == "lora")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_layers_train_alike(kind: str) -> None:
    losses = []
    for recomputed in (False, True):
        model = tiny.MODELS[kind]()
        lane = lane_of(model, config(epochs=2), "lora", 10, LoraConfig(targets="q+v", rank=4, dropout=0.1))
        losses.append(train_packed(model, lane, recomputed))
    assert losses[0] == losses[1]


def test_only_the_documents_own_tokens_are_seen() -> None:
    model = tiny.llama()
    packable = PackableRows.of(rows())
    outs = []
    for numbers in ([4, 7], [2, 4]):
        shape = packable.exact_shape(numbers)
        buffer = torch.zeros(shape.size, dtype=torch.long)
        packable.pack(numbers, shape, buffer.numpy(), num_targets=1, step=0)
        batch = PackedBatch(shape=shape, buffer=buffer)
        with attending(model, PACKED), torch.no_grad():
            out = model.model(input_ids=batch.input_ids[None], position_ids=batch.positions[None], cu_seq=batch.cu_seq, longest=shape.longest)
        outs.append(out.last_hidden_state[0][batch.rows == 4])
    assert torch.allclose(outs[0], outs[1], atol=1e-6)


def test_a_window_shorter_than_the_rows_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=4))
    ids, edges = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([0, 6])
    with attending(model, PACKED):
        model.model(input_ids=ids, position_ids=torch.arange(6)[None], cu_seq=edges, longest=4)
        with pytest.raises(ModelError, match=r'sliding_window = 4 is not implemented for packed rows.*train.step = "eager"'):
            model.model(input_ids=ids, position_ids=torch.arange(6)[None], cu_seq=edges, longest=6)


def test_a_captured_step_that_cannot_be_is_refused_and_auto_takes_the_plain_one() -> None:
    model = tiny.llama()
    lane = lane_of(model, config(step="captured"), "lora", 10)
    with (
        pytest.raises(RunError, match=r'train.step = "captured": it needs a CUDA device, this is cpu'),
        open_step(model, lane, rows(), pad_id=3, device=CPU, numerics=FP32),
    ):
        pass
    lane.config = config()
    with open_step(model, lane, rows(), pad_id=3, device=CPU, numerics=FP32) as step:
        assert step.kind == "eager"
