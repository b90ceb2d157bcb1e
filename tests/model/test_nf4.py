"""A base in 4 bits: its values are bitsandbytes' own, matmuls over it those over these values, and
what is trained, written and merged over it is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise, quantize_4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tests.train.test_packed import train_packed
from tsugiki.config.run import LoraConfig, ModelChoice
from tsugiki.errors import ConfigError, ModelError
from tsugiki.model.layouts import groups_of
from tsugiki.model.loading import find_base, load_base, num_parameters
from tsugiki.model.nf4 import Nf4Linear, joined_views, stored_bytes
from tsugiki.model.quantise import dense_layers, quantise_layers
from tsugiki.train.engine import fit
from tsugiki.train.step import EagerStep

KINDS = ["llama", "gpt2", "neox", "qwen2"]


def values_of(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """What codes stand for by the definition (QLoRA, section 3), in fp32. (The library's own
    function has other values on a CPU where rows are no multiple of 64.)"""
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    codes = torch.stack([packed >> 4, packed & 15], -1).reshape(-1, 64).long()
    return (state.code[codes] * absmax[:, None]).view(state.shape)


def in_4bit(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    quantise_layers(model, CPU, dtype)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_librarys_own(kind: str) -> None:
    plain, coded = build.MODELS[kind](), in_4bit(build.MODELS[kind]())
    changed = 0
    for path, module in coded.named_modules():
        if isinstance(module, Nf4Linear):
            own = plain.get_submodule(path)
            weight = own.weight.t() if module.transposed else own.weight
            packed, state = quantize_4bit(
                weight.detach().contiguous(), blocksize=64, compress_statistics=False,
                quant_type="nf4",
            )  # fmt: skip
            assert torch.equal(module.dense(), values_of(packed, state))
            assert not torch.equal(module.dense(), weight)
            changed += 1
    assert changed == sum(len(group) for group in groups_of(plain))
    assert num_parameters(coded) == num_parameters(plain)
    layers = sum(m.in_features * m.out_features for m in coded.modules() if hasattr(m, "codes"))
    assert stored_bytes(coded) == 4 * (num_parameters(plain) - layers) + layers // 2 + layers // 16


@pytest.mark.parametrize("kind", KINDS)
def test_codes_lie_in_one_allocation(kind: str) -> None:
    """So that the layers of a group are joined without a copy, and none is held twice."""
    coded = in_4bit(build.MODELS[kind]())
    for name in ("codes", "absmax"):
        groups = [
            [getattr(coded.get_submodule(path), name) for path in paths]
            for paths in groups_of(coded)
        ]
        parts = [part for group in groups for part in group]
        storage = parts[0].untyped_storage()
        assert {part.untyped_storage().data_ptr() for part in parts} == {storage.data_ptr()}
        assert storage.nbytes() == sum(part.nbytes for part in parts)
        for group in groups:
            assert joined_views(group)[0].data_ptr() == group[0].data_ptr()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmuls_are_those_over_the_dense_values(kind: str, dtype: torch.dtype) -> None:
    """Forward and backward, to the bit; dense layers are of the class that they were."""
    coded = in_4bit(build.MODELS[kind]().to(dtype), dtype)
    dense = in_4bit(build.MODELS[kind]().to(dtype), dtype)
    dense_layers(dense, dtype)
    named = {name: type(module) for name, module in build.MODELS[kind]().named_modules()}
    assert {name: type(module) for name, module in dense.named_modules()} == named
    ids = torch.arange(10, 26)[None]
    gradients = []
    for model in (coded, dense):
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=inputs).logits
        logits.float().pow(2).sum().backward()
        gradients.append((logits, inputs.grad))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", ["q+v", "all-linear"])
@pytest.mark.parametrize("packed", [False, True])
def test_adapters_over_4_bits_train_as_over_the_dense_values(
    kind: str, targets: str, packed: bool
) -> None:
    """Also where q, k and v, and gate and up, become one matmul over joined codes."""
    losses = []
    for dense in (False, True):
        model = in_4bit(build.MODELS[kind]())
        if dense:
            dense_layers(model, torch.float32)
        settings = config(epochs=2, learning_rate=1e-2)
        lane = lane_of(model, settings, "lora", 10, LoraConfig(targets=targets, rank=4))
        if packed:
            losses.append(train_packed(model, lane))
        else:
            step = EagerStep(model, rows(), 3, CPU, FP32)
            losses.append(fit(step, [lane], CPU, folders=[None])[0].history.loss)
        assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == (
            0 if dense else sum(len(group) for group in groups_of(model))
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(lane.parameters[name].any() for name in lane.parameters), "B moved"


def save_4bit(source: Path, folder: Path, **settings: Any) -> Path:
    given: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **settings}
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, device_map="cpu",
        quantization_config=BitsAndBytesConfig(**given),
    )  # fmt: skip
    model.save_pretrained(folder)
    build.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("double", [False, True])
def test_a_ready_4_bit_checkpoint_is_read_to_the_bit(
    double: bool, model_folder: Path, tmp_path: Path
) -> None:
    """Its values are those that transformers has."""
    folder = save_4bit(model_folder, tmp_path / "4bit", bnb_4bit_use_double_quant=double)
    base = load_base(find_base(ModelChoice(path=str(folder), base="nf4"), "lora", "fp32"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    compared = 0
    for path, module in base.model.named_modules():
        if isinstance(module, Nf4Linear):
            weight = theirs.get_submodule(path).weight
            assert torch.equal(module.dense(), values_of(weight.data, weight.quant_state))
            compared += 1
    assert compared == 14
    assert base.num_parameters == num_parameters(build.llama())
    with pytest.raises(ModelError, match='write base = "nf4"'):
        find_base(ModelChoice(path=str(folder)), "lora", "fp32")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, "quantised \\(bitsandbytes fp4\\)"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "quantised \\(bitsandbytes int8\\)"),
        ({"quant_method": "gptq"}, "quantised \\(gptq\\)"),
    ],
    ids=["fp4", "int8", "gptq"],
)
def test_other_quantised_weights_are_refused(
    settings: dict[str, Any], said: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = build.save(tmp_path / "model")
    path = folder / "config.json"
    given = {"quant_method": "bitsandbytes", "load_in_4bit": True, **settings}
    content = {**json.loads(path.read_text()), "quantization_config": given}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        find_base(ModelChoice(path=str(folder), base="nf4"), "lora", "fp32")


def test_full_fine_tuning_of_4_bits_is_refused_with_the_way(
    model_folder: Path, task_file: Path
) -> None:
    model = {"path": str(model_folder), "base": "nf4"}
    with pytest.raises(ConfigError, match=r'4 bits cannot be tuned by method = "full".*moments'):
        build.run_config(model_folder, task_file, model=model, method="full", lora=None)


def test_no_code_is_fetched_from_the_hub(tmp_path: Path) -> None:
    """bitsandbytes asks the package `kernels` for a compiled one when it is imported, on CPUs with
    fast bf16."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked for a kernel')")
    code = (
        "import sys\nfrom tsugiki.model.nf4 import load_library\nload_library()\n"
        "assert 'bitsandbytes' in sys.modules and 'kernels' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:src"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
