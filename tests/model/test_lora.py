"""Targets by plain words, the paper's parameter counts, dropout masks from counters."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, OPTForCausalLM

from tests import build
from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError
from tsugiki.model.layouts import find_target_slices
from tsugiki.model.loading import num_parameters
from tsugiki.model.lora import attach
from tsugiki.model.lora_ops import dropout_mask


@pytest.mark.parametrize(
    ("layers", "width", "heads", "total", "adapters"),
    [(24, 2048, 16, 1317e6, 6.29e6), (32, 4096, 32, 6666e6, 16.78e6)],
)
def test_the_papers_models_have_its_parameter_counts(
    layers: int, width: int, heads: int, total: float, adapters: float
) -> None:
    """GPT-2 layout, 51,200 pieces, 2,048 positions; Table 2 of the paper: 1,317 M / 6,666 M, LoRA
    q+k+v+o r16."""
    config = GPT2Config(
        vocab_size=51200, n_positions=2048, n_embd=width, n_layer=layers, n_head=heads
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        assert num_parameters(model) == pytest.approx(total, rel=1e-3)
        grafted = attach(model, LoraConfig(targets="q+k+v+o", rank=16), seed=0)
    count = sum(parameter.numel() for parameter in grafted.parameters.values())
    assert count == layers * 4 * 2 * width * 16
    assert count == pytest.approx(adapters, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "targets", "words"),
    [
        ("llama", "q+v", "q v"),
        ("llama", "all-linear", "q k v o gate up down"),
        ("gpt2", "all-linear", "q k v o fc proj"),
    ],
)
def test_words_name_layers(kind: str, targets: str, words: str) -> None:
    places = find_target_slices(build.MODELS[kind](), targets)
    assert [place.target for place in places] == words.split() * 2


def test_gpt2_q_and_v_are_ranges_of_the_fused_weight() -> None:
    q, v = find_target_slices(build.gpt2(), "q+v")[:2]
    assert (q.path, q.start, q.stop) == ("transformer.h.0.attn.c_attn", 0, 32)
    assert (v.path, v.start, v.stop) == ("transformer.h.0.attn.c_attn", 64, 96)


@pytest.mark.parametrize("targets", ["q+vv", "query", "q++v", "q+q", ""])
def test_an_unknown_target_is_an_error_that_lists_what_is_there(targets: str) -> None:
    with pytest.raises(
        ModelError, match=r"names a layer twice|Known: all-linear, down, gate, k, o, q, up, v"
    ):
        find_target_slices(build.llama(), targets)


def test_an_unknown_layout_lists_its_linear_layers() -> None:
    config = OPTConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        word_embed_proj_dim=16,
    )
    with pytest.raises(
        ModelError,
        match=r"of none of the layouts that LoRA knows \(Llama, GPT-2, GPT-NeoX\).*fc1, fc2, "
        r"k_proj, lm_head, out_proj",
    ):
        find_target_slices(OPTForCausalLM(config), "q+v")


def test_neox_q_is_a_range_of_each_head() -> None:
    """Each head's 24 outputs are its q, k and v, eight of each: the model splits them so."""
    q, v = find_target_slices(build.neox(), "q+v")[:2]
    assert (q.start, q.stop, q.heads, v.start, v.stop) == (0, 8, 4, 16, 24)
    assert q.rows(96).tolist() == [24 * head + place for head in range(4) for place in range(8)]
    model = build.neox()
    attention = model.gpt_neox.layers[0].attention
    with torch.no_grad():
        before = model(torch.tensor([[5, 6, 7, 8]])).logits
        attention.query_key_value.weight[v.rows(96)] = 0
        attention.query_key_value.bias[v.rows(96)] = 0
        attention.dense.bias.zero_()
        without = attention(
            torch.randn(1, 4, 32),
            attention_mask=None,
            position_embeddings=model.gpt_neox.rotary_emb(
                torch.randn(1, 4, 32), torch.arange(4)[None]
            ),
        )[0]
    assert before.isfinite().all()
    assert not without.any(), "without values attention gives nothing"


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    model = build.gpt2()
    before = model(ids).logits
    grafted = attach(model, LoraConfig(targets="all-linear", rank=4), seed=0)
    assert torch.equal(model(ids).logits, before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in grafted.parameters.values()
    }


def test_a_mask_depends_on_its_counters_alone() -> None:
    rows = torch.tensor([[4], [9], [2]])
    places = torch.arange(6)[None]
    mask = dropout_mask(1, 7, 123, rows, places, 10, 0.25)
    alone = dropout_mask(1, torch.tensor(7), 123, rows[1:2], places, 10, 0.25)
    longer = dropout_mask(1, 7, 123, rows, torch.arange(9)[None], 10, 0.25)
    packed = dropout_mask(1, 7, 123, torch.tensor([[4, 4, 9]]), torch.tensor([[0, 1, 0]]), 10, 0.25)
    assert torch.equal(mask[1:2], alone)
    assert torch.equal(mask, longer[:, :6])
    assert torch.equal(packed[0], torch.stack([mask[0, 0], mask[0, 1], mask[1, 0]]))
    for seed, step, layer in ((2, 7, 123), (1, 8, 123), (1, 7, 124)):
        assert not torch.equal(mask, dropout_mask(seed, step, layer, rows, places, 10, 0.25))


def test_a_mask_drops_the_right_share_and_keeps_the_mean() -> None:
    mask = dropout_mask(3, 5, 99, torch.arange(64)[:, None], torch.arange(32)[None], 64, 0.3)
    assert (mask == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    by_feature = (mask == 0).float().mean(dim=(0, 1))
    assert by_feature.std().item() < 0.02


def test_an_unknown_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.errors import RunError
    from tsugiki.model.numerics import pick_device

    monkeypatch.setenv("TSUGIKI_DEVICE", "gpu")
    with pytest.raises(RunError, match="TSUGIKI_DEVICE=gpu: no such device"):
        pick_device()
