"""A trained run as an ordinary model folder: behind the merge gate, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import build
from tests.build import TRAIN, run_config
from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError
from tsugiki.model.lora import attach
from tsugiki.model.merge import merge_adapter
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import answer_texts, export_merged

pytestmark = pytest.mark.precision

PROMPT = "文1: 犬が公園を走っています。[SEP]文2: 動物が外にいます。[SEP]"
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "merged.json",
}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_merged_model_answers_as_the_run(
    method: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    changes = (
        {"method": "full", "lora": None}
        if method == "full"
        else {"lora": {"targets": "all-linear", "rank": 4, "alpha": 16}}
    )
    [record] = run_group([run_config(model_folder, task_file, **changes)], Store(tmp_path))
    seen = export_merged(record, tmp_path / "merged", "fp32")
    assert (seen.rows, seen.changed, seen.before) == (9, 0, seen.after)
    assert seen.lost < 1e-5
    assert {path.name for path in (tmp_path / "merged").iterdir()} == FILES
    assert (
        json.loads((tmp_path / "merged" / "merged.json").read_text())["run"] == record.folder.name
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False).input_ids])
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=3)[
        0, ids.shape[1] :
    ]
    assert (
        answer_texts(record, [PROMPT], 6)[0].strip()
        == tokenizer.decode(plain, skip_special_tokens=True).strip()
    )
    with pytest.raises(ModelError, match="not an empty folder"):
        export_merged(record, tmp_path / "merged", "fp32")


def test_a_merge_leaves_the_buffers_in_fp32(tmp_path: Path) -> None:
    """As they are when the folder is loaded: rotary frequencies in bf16 would be another model for
    far positions."""
    model = build.llama()
    attach(model, LoraConfig(targets="q+v", rank=2), seed=0)
    merge_adapter(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert (
        model.model.rotary_emb.inv_freq.dtype
        == again.model.rotary_emb.inv_freq.dtype
        == torch.float32
    )
    ids = torch.arange(5, 105)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_merge_into_the_current_folder_is_refused(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [record] = run_group([run_config(model_folder, task_file)], Store(tmp_path / "runs"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match="is the current folder"):
        export_merged(record, Path(), "fp32")


def test_a_merge_that_changes_the_model_is_refused_and_writes_nothing(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki.runs import use as answer

    [record] = run_group(
        [run_config(model_folder, task_file, train={**TRAIN, "epochs": 20})], Store(tmp_path)
    )
    real = answer.merge_adapter

    def broken(model: torch.nn.Module, dtype: torch.dtype) -> float:
        lost = real(model, dtype)
        with torch.no_grad():
            model.get_output_embeddings().weight.neg_()
        return lost

    monkeypatch.setattr(answer, "merge_adapter", broken)
    with pytest.raises(
        ModelError,
        match=r"merged into bf16 weights it is another model: .* of 9 answers changed.*Nothing was "
        r"written",
    ):
        export_merged(record, tmp_path / "merged", "bf16")
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
    with pytest.raises(ModelError, match=r"Nothing was written\. --force writes it"):
        export_merged(record, tmp_path / "merged", "fp32")  # what was asked for is not advised
    seen = export_merged(record, tmp_path / "merged", "bf16", force=True)
    assert seen.forced
    kept = json.loads((tmp_path / "merged" / "merged.json").read_text(encoding="utf-8"))
    assert (kept["forced"], kept["changed"]) == (True, seen.changed)
    assert seen.changed > 0


def test_merged_weights_lie_in_files_as_large_as_the_bases(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsugiki.runs.use.SLACK", 0)
    build.llama().save_pretrained(tmp_path / "model", max_shard_size=60_000)
    build.tokenizer().save_pretrained(tmp_path / "model")
    [record] = run_group([run_config(tmp_path / "model", task_file)], Store(tmp_path / "out"))
    export_merged(record, tmp_path / "merged", "fp32")
    sizes = {
        name: [path.stat().st_size for path in (tmp_path / name).glob("*.safetensors")]
        for name in ("model", "merged")
    }
    assert len(sizes["merged"]) > 1
    assert max(sizes["merged"]) < 1.05 * max(sizes["model"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_only_the_weights_of_a_merged_model_are_new(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """What transformers 5 writes anew, 4.57 reads with another rope: the base's own files go
    along, to the byte."""
    import shutil
    import stat

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = (
        (folder / "config.json")
        .read_text(encoding="utf-8")
        .replace("{", '{\n  "rope_theta": 10000.0,', 1)
    )
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "LICENSE").write_text("CC0", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    [record] = run_group([run_config(folder, task_file)], Store(tmp_path))
    export_merged(record, tmp_path / "merged", "bf16", tolerance=100, answers=100)
    for name in (
        "LICENSE",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes(), name
    written = (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")
    assert written == config.replace('"dtype": "float32"', '"dtype": "bfloat16"') != config
    assert stat.S_IMODE((tmp_path / "merged" / "model.safetensors").stat().st_mode) & 0o044
    assert (
        next(
            AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").parameters()
        ).dtype
        == torch.bfloat16
    )


def test_an_exported_adapter_names_its_base_so_that_peft_finds_it_from_anywhere(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki.runs.use import export_run

    monkeypatch.chdir(model_folder.parent)
    [record] = run_group([run_config(Path(model_folder.name), task_file)], Store(tmp_path))
    export_run(record, tmp_path / "adapter")
    given = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert given["base_model_name_or_path"] == str(model_folder.resolve())


def test_a_merge_into_fp32_is_judged_in_fp32(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 products the merged sum is rounded where the adapter's was not: another question
    than whether the merge is right."""
    monkeypatch.setenv("TSUGIKI_CPU_BF16", "1")
    [record] = run_group(
        [run_config(model_folder, task_file, train={**TRAIN, "precision": "auto", "epochs": 10})],
        Store(tmp_path),
    )
    assert record.provenance.numerics.base == "bf16"
    seen = export_merged(record, tmp_path / "merged", "fp32")
    assert seen.changed == 0
    assert seen.before == seen.after
    assert seen.lost < 1e-6
