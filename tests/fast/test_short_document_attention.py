"""The Triton kernels against their twins, in Triton's interpreter on a CPU; skipped where Triton
is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests import build
from tsugiki.config.run import LoraConfig
from tsugiki.fast import attention
from tsugiki.fast.fused_linears import fused
from tsugiki.fast.rotary import KINDS, PendingRope, deferred_rope
from tsugiki.fast.short_document_attention import LONGEST, supports
from tsugiki.fast.swiglu import swiglu
from tsugiki.model.lora import attach

CODE = """
import torch
from tsugiki.fast.attention import by_document
from tsugiki.fast.rotary import PendingRope, apply_pending_rope
from tsugiki.fast.short_document_attention import joined_attention, short_document_attention
torch.manual_seed(0)
for heads, group, width, edges, turning in (
    (4, 1, 32, [0, 5, 5, 70, 198, 200], True), (4, 2, 64, [0, 64, 65, 193, 193], False),
    (2, 2, 128, [0, 1, 40], True), (4, 2, 64, [0, 100, 130], True),
):
    n, dtype = edges[-1], torch.float16
    # strides as the models give them
    q = torch.randn(heads, n, width, dtype=dtype).transpose(0, 1).requires_grad_()
    k, v = (torch.randn(n, heads // group, width, dtype=dtype).requires_grad_() for _ in range(2))
    half = torch.rand(n, width // 2) * 6
    pair = (torch.cat([one, one], dim=-1) for one in (half.cos(), half.sin()))
    cos, sin = pair if turning else (None, None)
    starts = torch.tensor(edges, dtype=torch.int32)
    out, _ = short_document_attention(q, k, v, cos, sin, starts, width**-0.5)
    slopes = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, (q, k, v), slopes))
    plain = [one.detach().float().requires_grad_() for one in (q, k, v)]
    states = plain[:2]
    if turning:
        states = [PendingRope(one.transpose(0, 1)[None], cos[None], sin[None]) for one in states]
        states = [apply_pending_rope(one)[0].transpose(0, 1) for one in states]
    expected = by_document(*states, plain[2], edges, width**-0.5)
    expected = (expected, *torch.autograd.grad(expected, plain, slopes.float()))
    for one, other in zip(found, expected, strict=True):
        assert ((one.float() - other).norm() / other.norm()).item() < 1e-3
    side_by_side = torch.cat([one.detach().flatten(1) for one in (q, k, v)], dim=1).requires_grad_()
    ends = torch.tensor(edges, dtype=torch.int32)
    same, _ = joined_attention(side_by_side, heads, width, cos, sin, ends, width**-0.5)
    assert torch.equal(same, out)
    [joined] = torch.autograd.grad(same, side_by_side, slopes)
    assert torch.equal(joined, torch.cat([one.flatten(1) for one in found[1:]], dim=1))
from tsugiki.fast import swiglu, swiglu_kernels
for width in (48, 1500):
    gate_up = torch.randn(3, 2 * width, dtype=torch.float16)
    slopes = torch.randn(3, width, dtype=torch.float16)
    out, dgate_up = torch.empty_like(slopes), torch.empty_like(gate_up)
    swiglu_kernels.forward[swiglu._grid(out)](gate_up, out, width, BLOCK=swiglu.BLOCK)
    swiglu_kernels.backward[swiglu._grid(out)](slopes, gate_up, dgate_up, width, BLOCK=swiglu.BLOCK)
    expected = (swiglu.swiglu(gate_up), swiglu.swiglu_backward(slopes, gate_up))
    for one, other in zip((out, dgate_up), expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-3
"""


@pytest.mark.skipif(
    find_spec("triton") is None,
    reason="Triton is not installed: it comes with PyTorch's CUDA builds",
)
def test_the_kernels_equal_their_twins() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter cannot count loops with this NumPy (3.6 with 2.4)")
    assert done.returncode == 0, done.stderr


def test_what_the_kernel_takes() -> None:
    q = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    assert supports(q, LONGEST)
    assert not supports(q, LONGEST + 1)
    assert not supports(q.float(), 10)
    assert not supports(torch.zeros(3, 2, 80, dtype=torch.bfloat16), 10)


def test_the_swiglu_operator_is_what_the_layers_wrote() -> None:
    gate_up = torch.randn(5, 24, dtype=torch.double, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    slopes = torch.randn_like(expected)
    assert torch.allclose(swiglu(gate_up), expected)
    [found] = torch.autograd.grad(swiglu(gate_up), gate_up, slopes)
    assert torch.allclose(found, torch.autograd.grad(expected, gate_up, slopes)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["broad llama", "broad gpt2", "broad qwen3", "qwen2"])
def test_the_fused_output_is_given_where_the_attention_reads_it_untouched(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the attention gets in parts is what it gets as a whole; norms in between (Qwen3) forbid
    it."""
    seen = []

    def watching(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        gate_up = attention.fused_qkv_of(module, rope_applied=not isinstance(query, PendingRope))
        assert (
            attention.fused_qkv_of(module, rope_applied=not isinstance(query, PendingRope)) is None
        ), "once after each product"
        if gate_up is not None:
            parts = [
                one.states if isinstance(one, PendingRope) else one for one in (query, key, value)
            ]
            assert torch.equal(
                gate_up, torch.cat([one.transpose(1, 2).flatten(2) for one in parts], dim=-1)
            )
        seen.append(gate_up is not None)
        return attention.packed_attention(module, query, key, value, mask, **others)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, attention.PACKED, watching)
    model = build.MODELS[kind]()
    attach(model, LoraConfig(targets="q+v", rank=2), seed=0)
    packed = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "cu_seq": torch.tensor([0, 3, 5]),
        "longest": 3,
        "use_cache": False,
    }
    for left in (True, False):
        with (
            attention.attending(model, attention.PACKED),
            deferred_rope(model),
            deferred_rope(model, left),
            fused(model),
        ):
            model.base_model(inputs_embeds=torch.randn(1, 5, model.config.hidden_size), **packed)
            with torch.no_grad():
                model.base_model(
                    inputs_embeds=torch.randn(1, 5, model.config.hidden_size), **packed
                )
    handed = {
        "broad llama": [True, False],
        "broad gpt2": [True, True],
        "broad qwen3": [False, False],
        "qwen2": [True, False],
    }[kind]
    assert seen == [handed[0]] * 2 + [False] * 2 + [handed[1]] * 2 + [False] * 2


@pytest.mark.parametrize("kind", ["broad llama", "broad qwen3", "gpt2", "gemma"])
def test_rope_that_was_deferred_gives_the_same_states(kind: str) -> None:
    model = build.MODELS[kind]()
    packed = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "cu_seq": torch.tensor([0, 3, 5]),
        "longest": 3,
        "use_cache": False,
    }
    states = torch.randn(1, 5, model.config.hidden_size)
    code = sys.modules[type(model).__module__]
    written = getattr(code, "apply_rotary_pos_emb", None)
    with attention.attending(model, attention.PACKED), torch.no_grad():
        expected = model.base_model(inputs_embeds=states, **packed).last_hidden_state
        with deferred_rope(model):
            found = model.base_model(inputs_embeds=states, **packed).last_hidden_state
            assert (getattr(code, "apply_rotary_pos_emb", None) is written) == (
                model.config.model_type not in KINDS
            )
            with deferred_rope(model, deferred=False):
                assert getattr(code, "apply_rotary_pos_emb", None) is written
    assert getattr(code, "apply_rotary_pos_emb", None) is written
    assert torch.equal(found, expected)


def test_nothing_but_the_packed_attention_reads_what_was_left() -> None:
    """A layer that touched it in between would fail, not compute something else."""
    model = build.llama()
    with deferred_rope(model), pytest.raises((AttributeError, TypeError)):
        model(input_ids=torch.tensor([[5, 6, 7]]))
