"""LoRA against peft: same outputs, same gradients, adapters readable in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import build
from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError
from tsugiki.model.export import export_adapter
from tsugiki.model.lora import LaneAdapter, attach, detach, lora_layers, switched_off
from tsugiki.model.merge import merge_adapter
from tsugiki.model.read_adapter import import_adapter

IDS = torch.tensor([[5, 9, 30, 41, 300, 7], [8, 8, 100, 2, 17, 45]])
CASES = [
    ("llama", "q+v"),
    ("llama", "q+k+v+o"),
    ("llama", "all-linear"),
    ("gpt2", "q+v"),
    ("gpt2", "q+k+v+o"),
    ("gpt2", "all-linear"),
    ("gpt2", "fc"),
]
CASES += [
    ("gpt2", "qkv"),
    ("gpt2", "qkv+o"),
    ("neox", "q+v"),
    ("neox", "q+k+v+o"),
    ("neox", "all-linear"),
    ("neox", "qkv"),
    ("neox", "k+proj"),
]
CASES += [("qwen2", "q+v"), ("qwen3", "all-linear"), ("gemma", "q+k+v+o")]


def grafted(kind: str, targets: str, rank: int = 4, alpha: float = 6.0) -> LaneAdapter:
    """An adapted model whose B is not zero, as after training."""
    model = build.MODELS[kind]()
    result = attach(model, LoraConfig(targets=targets, rank=rank, alpha=alpha), seed=1)
    torch.manual_seed(7)
    for name, parameter in result.parameters.items():
        if name.endswith(".B"):
            parameter.data.normal_(0, 0.05)
    return result


def exported(kind: str, targets: str, folder: Path) -> LaneAdapter:
    ours = grafted(kind, targets)
    export_adapter(ours, folder, "tiny")
    return ours


def read_and_exported_again(theirs: Any, kind: str, folder: Path) -> LaneAdapter:
    """Peft's adapter computes the same once it is read here, and once it has left again."""
    theirs.eval().save_pretrained(folder / "adapter")
    ours = import_adapter(build.MODELS[kind](), folder / "adapter")
    torch.testing.assert_close(ours.model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    export_adapter(ours, folder / "again", "tiny")
    again = peft.PeftModel.from_pretrained(build.MODELS[kind](), folder / "again").eval()
    torch.testing.assert_close(again(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    return ours


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_peft_computes_the_same_from_an_exported_adapter(
    kind: str, targets: str, tmp_path: Path
) -> None:
    ours = exported(kind, targets, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(build.MODELS[kind](), tmp_path / "adapter").eval()
    with switched_off(ours.model):
        base = ours.model(IDS).logits
    torch.testing.assert_close(base, build.MODELS[kind]()(IDS).logits, rtol=0, atol=0)
    assert (ours.model(IDS).logits - base).abs().max() > 1e-3
    torch.testing.assert_close(ours.model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_gradients_equal_those_of_peft(kind: str, targets: str, tmp_path: Path) -> None:
    ours = exported(kind, targets, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(
        build.MODELS[kind](), tmp_path / "adapter", is_trainable=True
    )
    for parameter in ours.parameters.values():
        parameter.requires_grad_(True)
    ours.model(IDS, labels=IDS).loss.backward()
    theirs.eval()(IDS, labels=IDS).loss.backward()
    gradients = dict(theirs.named_parameters())
    for path, layer in lora_layers(ours.model):
        a = gradients[f"base_model.model.{path}.lora_A.default.weight"].grad
        b = gradients[f"base_model.model.{path}.lora_B.default.weight"].grad
        for index, place in enumerate(layer.slices):
            part = slice(index * 4, index * 4 + 4)
            torch.testing.assert_close(layer.lora_a[index].grad, a[part], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                layer.lora_b[index].grad, b[place.rows(len(b)), part], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_round_trip_is_exact(kind: str, targets: str, tmp_path: Path) -> None:
    ours = exported(kind, targets, tmp_path / "adapter")
    back = import_adapter(build.MODELS[kind](), tmp_path / "adapter")
    assert back.parameters.keys() == ours.parameters.keys()
    assert back.config.scale == pytest.approx(ours.config.scale)
    for name, parameter in ours.parameters.items():
        assert torch.equal(parameter, back.parameters[name]), name


def test_an_adapter_saved_by_peft_is_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(build.llama(), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = import_adapter(build.llama(), tmp_path / "adapter")
    assert ours.config.targets == "q+v"
    torch.testing.assert_close(ours.model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("gpt2", ["c_attn"]),
        ("gpt2", ["c_attn", "c_fc"]),
        ("neox", ["query_key_value"]),
        ("neox", ["query_key_value", "dense"]),
    ],
)
def test_an_ordinary_adapter_on_the_fused_weight_is_read_as_qkv(
    kind: str, modules: list[str], tmp_path: Path
) -> None:
    """What peft, LLaMA-Factory or Unsloth write: one adapter over q, k and v together. It leaves
    again as it came."""
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=modules,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )
    theirs = peft.get_peft_model(build.MODELS[kind](), config)
    ours = read_and_exported_again(theirs, kind, tmp_path)
    assert "qkv" in ours.config.targets.split("+")


def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(build.llama(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="use_dora"):
        import_adapter(build.llama(), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"lora_alpha": 0}, "lora_alpha = 0 must be above 0, and a number"),
    ],
)
def test_what_would_be_scored_wrongly_is_refused_by_name(
    change: dict, said: str, tmp_path: Path
) -> None:
    export_adapter(grafted("llama", "q+v"), tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        import_adapter(build.llama(), tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="not an empty folder"):
        export_adapter(grafted("llama", "q+v"), tmp_path, "tiny")


def test_detaching_restores_the_base_bit_for_bit() -> None:
    result = grafted("gpt2", "all-linear")
    detach(result.model)
    assert not lora_layers(result.model)
    assert torch.equal(result.model(IDS).logits, build.gpt2()(IDS).logits)


def test_the_start_of_a_place_depends_on_the_seed_not_on_its_neighbours() -> None:
    narrow = attach(build.llama(), LoraConfig(targets="v", rank=4), seed=3).parameters
    wide = attach(build.llama(), LoraConfig(targets="all-linear", rank=4), seed=3).parameters
    other = attach(build.llama(), LoraConfig(targets="v", rank=4), seed=4).parameters
    for name, parameter in narrow.items():
        assert torch.equal(parameter, wide[name])
        assert name.endswith(".B") or not torch.equal(parameter, other[name])


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_merged_weights_equal_those_of_peft(kind: str, targets: str, tmp_path: Path) -> None:
    ours = exported(kind, targets, tmp_path / "adapter")
    adapted = ours.model(IDS).logits
    theirs = peft.PeftModel.from_pretrained(
        build.MODELS[kind](), tmp_path / "adapter"
    ).merge_and_unload()
    assert merge_adapter(ours.model, torch.float32) < 1e-5
    assert not lora_layers(ours.model)
    torch.testing.assert_close(ours.model(IDS).logits, adapted, rtol=1e-4, atol=1e-5)
    expected = theirs.state_dict()
    assert ours.model.state_dict().keys() == expected.keys()
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_rounding_takes_a_share_of_a_small_change() -> None:
    small = grafted("llama", "q+v", alpha=0.01)
    assert merge_adapter(small.model, torch.bfloat16) > 0.3
    assert all(parameter.dtype == torch.bfloat16 for parameter in small.model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha_pattern": {"q_proj": 12, "v_proj": 12}},
        {"rank_pattern": {"q_proj": 8, "v_proj": 8}},
        {"rank_pattern": {"q_proj": 8, "v_proj": 8}, "alpha_pattern": {".*v_proj": 9, "q_proj": 9}},
    ],
)
def test_patterns_of_rank_and_alpha_are_read_as_peft_reads_them(
    changes: dict, tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **changes,
    )
    theirs = peft.get_peft_model(build.llama(), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = import_adapter(build.llama(), tmp_path / "adapter")
    torch.testing.assert_close(ours.model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"r": 4, "alpha_pattern": {"v_proj": 12}}),
        ("llama", {"r": 4, "rank_pattern": {"v_proj": 2}}),
        ("llama", {"r": 4, "use_rslora": True}),
        ("llama", {"r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 3}}),
        ("llama", {"r": 4, "layers_to_transform": [1]}),
        ("llama", {"r": 4, "layers_to_transform": 0, "layers_pattern": "layers"}),
        ("llama", {"r": 4, "target_modules": r".*layers\.0\..*(q|up)_proj"}),
        ("llama", {"r": 4, "target_modules": "all-linear"}),
        ("llama", {"r": 4, "exclude_modules": ["layers.1.self_attn.v_proj"]}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn"], "layers_to_transform": [0]}),
        ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 3}}),
    ],
    ids=str,
)
def test_plain_adapters_in_other_words_are_read_and_leave_again(
    kind: str, settings: dict, tmp_path: Path
) -> None:
    given = {
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": False,
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": kind == "gpt2",
    }
    theirs = peft.get_peft_model(build.MODELS[kind](), peft.LoraConfig(**{**given, **settings}))
    ours = read_and_exported_again(theirs, kind, tmp_path)
    assert ours.num_real == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_one_rank_serves_programs_that_scale_by_a_tensors_rows(
    kind: str, targets: str, tmp_path: Path
) -> None:
    """llama.cpp computes α / rows of each tensor, vLLM α / r of the settings."""
    ours = exported(kind, targets, tmp_path / "adapter")
    given = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not given.get("rank_pattern")
    assert not given.get("alpha_pattern")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for path, layer in lora_layers(ours.model):
        a, b = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        assert len(a) == b.shape[1] == given["r"]
        update = torch.zeros(len(b), a.shape[1])
        for part, own_a, own_b in layer.adapters_of(0):
            update[part.rows(len(b))] = (own_b @ own_a).detach() * ours.config.scale
        torch.testing.assert_close(b @ a * (given["lora_alpha"] / len(a)), update)
    back = import_adapter(build.MODELS[kind](), tmp_path / "adapter")
    assert back.num_real == sum(p.numel() for p in ours.parameters.values())
    assert back.config.rank == 4


def test_rslora_scales_as_peft_does_and_leaves_as_plain_lora(tmp_path: Path) -> None:
    """α / √r while it trains; in the file the same scale as α / r, which every program reads."""
    wanted = LoraConfig(targets="q+v", rank=4, alpha=6.0, rslora=True)
    ours = attach(build.llama(), wanted, seed=1)
    for name, parameter in ours.parameters.items():
        if name.endswith(".B"):
            parameter.data.fill_(0.02)
    export_adapter(ours, tmp_path / "adapter", "tiny")
    theirs = peft.get_peft_model(
        build.llama(),
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    )
    read = peft.PeftModel.from_pretrained(build.llama(), str(tmp_path / "adapter"))
    [one] = {layer.scaling["default"] for layer in theirs.modules() if hasattr(layer, "lora_A")}
    assert one == pytest.approx(wanted.scale) == pytest.approx(3.0)
    torch.testing.assert_close(read(IDS).logits, ours.model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_missing_without_being_left_out_is_refused(tmp_path: Path) -> None:
    export_adapter(grafted("llama", "q+v"), tmp_path / "adapter", "tiny")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    some = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    save_file(some, path)
    with pytest.raises(ModelError, match="though its settings put an adapter there"):
        import_adapter(build.llama(), tmp_path / "adapter")


def test_names_as_inside_peft_and_a_checkpoint_one_level_down(tmp_path: Path) -> None:
    ours = grafted("llama", "q+v")
    export_adapter(ours, tmp_path / "checkpoint-10", "tiny")
    path = tmp_path / "checkpoint-10" / "adapter_model.safetensors"
    inside = {n.replace(".weight", ".default.weight"): t for n, t in load_file(path).items()}
    save_file(inside, path)
    back = import_adapter(build.llama(), tmp_path)
    torch.testing.assert_close(back.model(IDS).logits, ours.model(IDS).logits, rtol=0, atol=0)
    export_adapter(ours, tmp_path / "checkpoint-20", "tiny")
    with pytest.raises(ModelError, match=r"2 adapters: checkpoint-10, checkpoint-20\. Name one"):
        import_adapter(build.llama(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights = 'pissa' changes the base's own weights",
        ),
        ({"lora_alpha": None}, "lora_alpha is missing: not a LoRA adapter"),
        ({"lora_bias": True}, "lora_bias = True is not implemented.*merge_and_unload"),
    ],
)
def test_what_would_be_read_wrong_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    import json

    export_adapter(grafted("llama", "q+v"), tmp_path / "adapter", "tiny")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        import_adapter(build.llama(), tmp_path / "adapter")


def test_an_adapter_of_another_base_is_one_line(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    export_adapter(grafted("llama", "q+v"), tmp_path / "adapter", "another-model")
    with pytest.raises(
        ModelError,
        match=r"q_proj.lora_A.weight is \[4, 32\], this model needs \[4, 64\]. The adapter was "
        r"made for another-model",
    ):
        import_adapter(LlamaForCausalLM(LlamaConfig(**sizes)), tmp_path / "adapter")
