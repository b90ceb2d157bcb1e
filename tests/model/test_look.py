"""A loaded model does what training and generation rely on, or is refused, or takes the plain
path: seen on tiny models of many kinds."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from tests import build
from tsugiki.config.run import LoraConfig, ModelChoice
from tsugiki.data.batch import collate
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens
from tsugiki.errors import ModelError
from tsugiki.fast.attention import packed_states
from tsugiki.model.layouts import find_target_slices
from tsugiki.model.loading import Base, backbone_and_head, find_base, load_base
from tsugiki.model.look import look_of, rows_stay_apart
from tsugiki.model.lora import attach
from tsugiki.model.numerics import Numerics
from tsugiki.score.predict import generate_ids
from tsugiki.train.loss import summed_losses

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = dict(SMALL, intermediate_size=48, num_hidden_layers=2, num_key_value_heads=2, head_dim=8)
HYBRID = dict(
    LLAMA,
    num_hidden_layers=2,
    layer_types=["conv", "full_attention"],
    conv_L_cache=3,
    max_position_embeddings=128,
)
# Kinds that must be taken, with HF's loss and HF's answers.
TAKEN = {
    "mistral": tf.MistralConfig(**LLAMA, sliding_window=None),
    "gemma": tf.GemmaConfig(**LLAMA),
    "phi3": tf.Phi3Config(**LLAMA),
    "olmo2": tf.Olmo2Config(**LLAMA),
    "mixtral": tf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "neox-japanese": tf.GPTNeoXJapaneseConfig(
        **SMALL, num_hidden_layers=2, intermediate_multiple_size=2
    ),
    "bloom": tf.BloomConfig(
        vocab_size=512,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    ),
    "opt": tf.OPTConfig(
        **SMALL,
        ffn_dim=48,
        num_hidden_layers=2,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    ),
    "lfm2": tf.Lfm2Config(**HYBRID),
    "mamba": tf.MambaConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
REFUSED = {
    "gemma2's cap": (
        tf.Gemma2Config(**LLAMA, final_logit_softcapping=30.0),
        "changes its logits after the output layer",
    ),
    "granite's scale": (
        tf.GraniteConfig(**LLAMA, logits_scaling=8.0),
        "changes its logits after the output layer",
    ),
    "cohere's scale": (
        tf.CohereConfig(**{k: v for k, v in LLAMA.items() if k != "head_dim"}, logit_scale=0.0625),
        "changes its logits after the output layer",
    ),
    "bert": (
        tf.BertConfig(**SMALL, num_hidden_layers=2, intermediate_size=48),
        'is an encoder \\(bert\\).* kind = "encoder"',
    ),
    "electra": (
        tf.ElectraConfig(**SMALL, embedding_size=32, num_hidden_layers=2, intermediate_size=48),
        "later tokens change what stands before them",
    ),
}


def saved(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)  # far from zero, so that answers differ from row to row
    model.save_pretrained(folder)
    build.tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Base:
    return load_base(find_base(ModelChoice(path=str(folder)), "full", "fp32"))


def rows() -> list[Tokens]:
    made = []
    for number in range(5):
        ids = [5 + (7 * number + 3 * place) % 300 for place in range(9 + 2 * number)]
        made.append(
            Tokens(
                example=Example(id=str(number), fields={}, target="x"),
                prompt_ids=tuple(ids[:-3]),
                target_ids=(*ids[-3:], 2),
            )
        )
    return made


@pytest.mark.parametrize("kind", list(TAKEN))
def test_what_is_taken_has_the_loss_and_the_answers_of_transformers(
    kind: str, tmp_path: Path
) -> None:
    folder = saved(TAKEN[kind], tmp_path)
    base = loaded(folder)
    theirs = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = collate(rows(), range(5), 3)
    with torch.no_grad():
        ours = summed_losses(*backbone_and_head(base.model), batch, [1] * 5)
        for row, loss in zip(rows(), ours, strict=True):
            ids = torch.tensor([[*row.prompt_ids, *row.target_ids]])
            labels = ids.clone()
            labels[:, : len(row.prompt_ids)] = -100
            assert float(loss) / len(row.target_ids) == pytest.approx(
                float(theirs(ids, labels=labels).loss), rel=1e-4
            )
    prompts = [row.prompt_ids for row in rows()]
    answers = generate_ids(base.model, prompts, max_new_tokens=6, stops=(2,), pad_id=3)
    for prompt, answer in zip(prompts, answers, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=3,
            use_cache=False,
        )
        assert answer == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_would_train_another_model_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, message = REFUSED[kind]
    folder = saved(config, tmp_path)
    with pytest.raises(ModelError, match=message):
        loaded(folder)
    monkeypatch.setenv("TSUGIKI_CPU_BF16", "1")
    # Of two faults the nearer one.
    with pytest.raises(ModelError, match=f"{message}|changes its logits"):
        load_base(find_base(ModelChoice(path=str(folder)), "lora", "bf16"))


@pytest.mark.parametrize("kind", list(TAKEN))
def test_what_is_taken_is_taken_in_16_bits_too(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSUGIKI_CPU_BF16", "1")
    base = load_base(find_base(ModelChoice(path=str(saved(TAKEN[kind], tmp_path))), "lora", "bf16"))
    assert look_of(base.model).cached == (kind != "mamba")


def test_a_cap_is_seen_however_small_the_logits_are(tmp_path: Path) -> None:
    tf.AutoModelForCausalLM.from_config(
        tf.Gemma2Config(**LLAMA, final_logit_softcapping=30.0, initializer_range=1e-3)
    ).save_pretrained(tmp_path)
    build.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="changes its logits"):
        loaded(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = build.llama()
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    build.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its logits are not finite numbers"):
        loaded(tmp_path)


def test_a_model_whose_cache_gives_other_answers_writes_without_one(tmp_path: Path) -> None:
    base = loaded(saved(TAKEN["mamba"], tmp_path))
    assert not look_of(base.model).cached, (
        "its state takes neither positions nor this kind of cache"
    )
    prompts = [row.prompt_ids for row in rows()]
    together = generate_ids(base.model, prompts, max_new_tokens=5, stops=(), pad_id=3)
    assert together == [
        generate_ids(base.model, [prompt], max_new_tokens=5, stops=(), pad_id=3)[0]
        for prompt in prompts
    ]
    assert look_of(loaded(saved(TAKEN["mistral"], tmp_path / "other")).model).cached


@pytest.mark.parametrize(("kind", "apart"), [("mistral", True), ("gemma", True), ("lfm2", False)])
def test_packed_rows_that_move_each_other_are_seen(kind: str, apart: bool, tmp_path: Path) -> None:
    model = loaded(saved(TAKEN[kind], tmp_path)).model
    assert rows_stay_apart(model, partial(packed_states, model, nullcontext())) == apart


def test_a_layout_is_looked_at_in_every_layer() -> None:
    """GLM-4.5 and DeepSeek begin with dense layers and go on with experts."""
    experts = {
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
    }
    model = tf.AutoModelForCausalLM.from_config(tf.Glm4MoeConfig(**LLAMA, **experts))
    with pytest.raises(
        ModelError,
        match=r"layer 1 has no linear layer mlp.gate_proj. "
        r"Targets that every layer has: q\+k\+v\+o",
    ):
        find_target_slices(model, "all-linear")
    assert len(attach(model, LoraConfig(targets="q+k+v+o", rank=2), seed=0).parameters) == 2 * 4 * 2


def test_a_fused_weight_of_unequal_parts_is_not_cut_in_three() -> None:
    """GPT-BigCode has one key head for all queries: its c_attn is no [q | k | v] of equal parts."""
    model = tf.AutoModelForCausalLM.from_config(
        tf.GPTBigCodeConfig(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )
    with pytest.raises(
        ModelError,
        match=r"c_attn has 48 outputs, not 3 equal parts of 32. Targets that every layer has: "
        r"o\+fc\+proj",
    ):
        find_target_slices(model, "q+v")
    assert isinstance(model.transformer.h[0].mlp.c_fc, nn.Module)
    assert len(find_target_slices(model, "fc+proj")) == 4


def test_a_rank_above_the_matrix_is_refused() -> None:
    with pytest.raises(
        ModelError,
        match=r"lora.rank = 17: model.layers.0.self_attn.v_proj \(v\) has rank 16 at most",
    ):
        attach(build.llama(), LoraConfig(targets="q+v", rank=17), seed=0)


def test_the_fast_step_asks_for_what_compiles_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.fast import cuda_graphs as capture

    monkeypatch.setattr(capture, "find_spec", lambda name: object())
    monkeypatch.setattr(capture.shutil, "which", lambda name: None)
    assert capture.missing_tools() == "no C compiler is there (gcc or clang)"
    monkeypatch.setattr(capture, "find_spec", lambda name: None)
    assert capture.missing_tools() == "Triton is not installed"


def test_whether_rows_stay_apart_is_asked_of_the_base_however_many_lanes_are_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tsugiki.fast import cuda_graphs as capture
    from tsugiki.model.lora import attach_lanes

    monkeypatch.setattr(capture, "missing_tools", lambda: None)
    model = build.llama()
    attach_lanes(model, [(LoraConfig(targets="q+v", rank=2), seed) for seed in range(3)])
    assert (
        capture.why_no_cuda_graphs(
            model, torch.device("cuda"), Numerics(compute="bf16", base="bf16", trained="fp32")
        )
        is None
    )
