"""A model folder is what it seems, or one line says what it is: code of others, other tensors,
other files, other kinds of models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import build
from tsugiki.config.run import ModelChoice
from tsugiki.errors import ModelError
from tsugiki.model.folder import INDEX, SINGLE, settings_checksum, stop_ids_of, weight_files
from tsugiki.model.loading import find_base, load_base, load_tokenizer, read_model

CODE = "raise SystemExit('code of others was run')\n"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change(folder: Path, name: str = "config.json", **settings: object) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **settings}), encoding="utf-8")


def load(folder: Path) -> None:
    load_base(find_base(ModelChoice(path=str(folder)), "full", "fp32"))


def tensors_changed(folder: Path, how: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / SINGLE)
    how(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_others_is_never_run(where: str, folder: Path) -> None:
    for name in ("conf_x.py", "mod_x.py", "tok_x.py"):
        (folder / name).write_text(CODE, encoding="utf-8")
    if where == "config.json":
        change(
            folder,
            model_type="xmodel",
            auto_map={"AutoConfig": "conf_x.XConfig", "AutoModelForCausalLM": "mod_x.XModel"},
        )
    else:
        change(
            folder,
            where,
            auto_map={"AutoTokenizer": ["tok_x.XTokenizer", None]},
            tokenizer_class="XTokenizer",
        )
    for look in (load, load_tokenizer):
        with pytest.raises(
            ModelError, match=r"needs code of its own \(auto_map\), which is never run here"
        ):
            look(folder)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)


def shrink(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name][:5].clone()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (drop, r"1 tensors are missing \(model.layers.1.mlp.up_proj.weight\)"),
        (add, r"1 tensors are with no place in the model \(model.layers.7.mlp.up_proj.weight\)"),
        (
            shrink,
            r"1 tensors are of another size than config.json says "
            r"\(model.layers.0.mlp.down_proj.weight is \[5, 48\], must be \[32, 48\]\)",
        ),
    ],
)
def test_other_tensors_than_config_json_says_are_refused_with_and_without_the_weights(
    how: Callable[..., None], message: str, folder: Path
) -> None:
    tensors_changed(folder, how)
    with pytest.raises(ModelError, match=message):
        load(folder)
    with pytest.raises(ModelError, match=message):
        read_model(folder, torch.float32, only_names=True)


def test_more_layers_in_the_settings_than_in_the_weights_are_refused(folder: Path) -> None:
    change(folder, num_hidden_layers=5)
    with pytest.raises(
        ModelError, match=r"27 tensors are missing \(model.layers.2.input_layernorm.weight, .* …\)"
    ):
        read_model(folder, torch.float32, only_names=True)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("neox", "gpt_neox.layers.0.attention.masked_bias"),
    ],
)
def test_constants_that_older_versions_wrote_are_no_tensors_too_many(
    kind: str, name: str, tmp_path: Path
) -> None:
    folder = build.save(tmp_path / kind, kind)
    tensors_changed(folder, lambda tensors: tensors.update({name: torch.tensor(-1e4)}))
    load(folder)


def test_the_checksum_is_of_the_file_that_is_loaded(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes((folder / SINGLE).read_bytes())
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"x": "other.safetensors"}}), encoding="utf-8"
    )
    assert [path.name for path in weight_files(folder)] == [SINGLE], "as transformers has it"
    (folder / SINGLE).unlink()
    assert [path.name for path in weight_files(folder)] == ["other.safetensors"]


@pytest.mark.parametrize(
    "name", ["../away.safetensors", "/etc/hosts", "weights.bin", "sub/part.safetensors"]
)
def test_an_index_names_files_of_its_own_folder(name: str, folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}), encoding="utf-8")
    with pytest.raises(ModelError, match="which is no safetensors file of its own folder"):
        weight_files(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"quantised \(bitsandbytes fp4\)",
        ),
        (
            {"vision_config": {"hidden_size": 8}},
            "has vision_config: a model with pictures or sounds",
        ),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers = 1000000000 must be a whole number from 1 to 2,000",
        ),
        ({"num_hidden_layers": True}, "num_hidden_layers = True must be a whole number"),
        ({"num_attention_heads": 5}, "cannot be loaded"),
        ({"model_type": "nonsense"}, "cannot be loaded as a causal language model"),
        ({"model_type": "t5"}, "cannot be loaded as a causal language model"),
        ({"eos_token_id": "two"}, "cannot be loaded"),
    ],
)
def test_settings_that_no_run_can_be_made_of_end_in_one_line(
    settings: dict, message: str, folder: Path
) -> None:
    change(folder, **settings)
    (folder / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_config_is_named(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"config\.json: (damaged or cut short|must be a JSON object)"
    ):
        load(folder)


def test_what_is_no_weights_file_is_named(folder: Path) -> None:
    (folder / SINGLE).write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(ModelError, match="is a Git LFS pointer, not the weights"):
        load(folder)
    (folder / SINGLE).write_bytes(b"\x10\0\0\0")
    with pytest.raises(ModelError, match="damaged or cut short"):
        load(folder)


def test_an_adapter_in_a_model_folder_is_refused(folder: Path) -> None:
    """transformers would load the model that the adapter names, from wherever that is."""
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "someone/else"}), encoding="utf-8"
    )
    with pytest.raises(
        ModelError, match=r"holds adapter_config\.json: transformers would load another model"
    ):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "added_tokens.json",
        "special_tokens_map.json",
        "generation_config.json",
    ],
)
def test_every_file_that_decides_ids_prompts_or_stopping_names_the_run(
    name: str, folder: Path
) -> None:
    before = settings_checksum(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}", encoding="utf-8")
    assert settings_checksum(folder) != before


def test_where_an_answer_ends_is_what_generation_config_says_else_config(folder: Path) -> None:
    change(folder, "generation_config.json", eos_token_id=[2, 4])
    assert stop_ids_of(folder) == (2, 4)
    (folder / "generation_config.json").unlink()
    assert stop_ids_of(folder) == (2,)
    change(folder, eos_token_id="two")
    with pytest.raises(ModelError, match="eos_token_id = 'two' must be a token id"):
        stop_ids_of(folder)


def test_the_named_card_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.errors import RunError
    from tsugiki.model.numerics import pick_device

    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("TSUGIKI_DEVICE", "cuda:1")
    assert pick_device() == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]
    monkeypatch.setenv("TSUGIKI_DEVICE", "cuda:2")
    with pytest.raises(RunError, match="2 CUDA devices are visible here, counted from 0"):
        pick_device()
    for wrong in ("meta", "xla", "cuda:x"):
        monkeypatch.setenv("TSUGIKI_DEVICE", wrong)
        with pytest.raises(RunError, match="no such device"):
            pick_device()


@pytest.mark.parametrize(("given", "compute"), [("0", "fp32"), ("1", "bf16")])
def test_a_switch_says_what_a_cpu_computes_in(
    given: str, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki.errors import RunError
    from tsugiki.model.numerics import pick_numerics

    monkeypatch.setenv("TSUGIKI_CPU_BF16", given)
    assert pick_numerics("lora", "auto", torch.device("cpu")).compute == compute
    monkeypatch.setenv("TSUGIKI_CPU_BF16", "yes")
    with pytest.raises(RunError, match="TSUGIKI_CPU_BF16=yes: must be 1"):
        pick_numerics("lora", "auto", torch.device("cpu"))
