"""Tiny models and a Japanese tokenizer, built in memory: nothing is downloaded, nothing is
mocked."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    XLMRobertaConfig,
)

from tsugiki.config.run import RunConfig
from tsugiki.report.material import Material
from tsugiki.report.table import InWords
from tsugiki.report.tables import all_tables
from tsugiki.toml import parse
from tsugiki.words import Language

SENTENCES = [
    "文1: 犬が公園を走っています。[SEP]文2: 動物が外にいます。",
    "質問: 空は何色ですか？1. 青 2. 赤 3. 白 4. 緑 5. 黒",
    "今日は天気がよいので、洗濯物がよく乾く。",
    "含意 中立 矛盾 田園 前提 仮説 関係 記事 見出し 要約 答え",
    "猫は台所で魚を食べた。子どもは庭で遊んでいる。",
]


def tokenizer(sep: bool = True) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE over the sentences above; with `sep`, `[SEP]` is a piece of its own."""
    specials = ["<unk>", "<s>", "</s>", "<pad>", *(["[SEP]"] if sep else [])]
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    bytes_of = [f"<0x{value:02X}>" for value in range(256)]
    inner.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=[*specials, *bytes_of], show_progress=False
        ),
    )
    extra = {"sep_token": "[SEP]"} if sep else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=_plain_bytes(inner, specials),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **extra,
    )


def _plain_bytes(inner: Tokenizer, specials: list[str]) -> Tokenizer:
    """The byte pieces are ordinary pieces: only the real specials stay special."""
    content = json.loads(inner.to_str())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] in specials]
    return Tokenizer.from_str(json.dumps(content))


def llama(vocab_size: int = 512, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocab_size: int = 512, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return GPT2LMHeadModel(config).eval()


def neox(vocab_size: int = 512, seed: int = 0) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return GPTNeoXForCausalLM(config).eval()


def qwen3(vocab_size: int = 512, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, head_dim=8, **_SMALL)).eval()


def qwen2(vocab_size: int = 512, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **_SMALL)).eval()


def gemma(vocab_size: int = 512, seed: int = 0) -> Gemma3ForCausalLM:
    torch.manual_seed(seed)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=vocab_size, head_dim=8, sliding_window=4, **_SMALL)
    ).eval()


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_BROAD = {**_SMALL, "hidden_size": 128}


def broad_llama(vocab_size: int = 512, seed: int = 0) -> LlamaForCausalLM:
    """Heads of 32: wide enough for the kernels for short documents, as all broad ones here."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **_BROAD)).eval()


def broad_gpt2(vocab_size: int = 512, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_embd=128, n_layer=2, n_head=4, n_positions=128, eos_token_id=2
        )
    ).eval()


def broad_qwen3(vocab_size: int = 512, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, head_dim=32, **_BROAD)).eval()


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "neox": neox,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
}
MODELS |= {"broad llama": broad_llama, "broad gpt2": broad_gpt2, "broad qwen3": broad_qwen3}


_ENCODER = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = {
    "roberta": lambda: RobertaConfig(**_ENCODER, max_position_embeddings=68, type_vocab_size=1),
    "bert": lambda: BertConfig(**_ENCODER, max_position_embeddings=64),
    "xlm-roberta": lambda: XLMRobertaConfig(**_ENCODER, max_position_embeddings=68),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER, max_position_embeddings=64, cls_token_id=1, sep_token_id=2
    ),
    "deberta-v2": lambda: DebertaV2Config(
        **_ENCODER,
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        type_vocab_size=0,
    ),
}


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The same pieces; a text stands between marks, a pair as RoBERTa encodes it."""
    inner = tokenizer().backend_tokenizer
    marks = [("<s>", 1), ("</s>", 2)]
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def save_encoder(folder: Path, kind: str = "roberta", seed: int = 0) -> Path:
    """A folder of a masked language model of this kind, drawn at random."""
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(ENCODERS[kind](), trust_remote_code=False)
    model.save_pretrained(folder)
    encoder_tokenizer().save_pretrained(folder)
    return folder


def save(folder: Path, kind: str = "llama", sep: bool = True) -> Path:
    """A model folder on disk, as a user would have one."""
    MODELS[kind]().save_pretrained(folder)
    tokenizer(sep).save_pretrained(folder)
    return folder


# Where the parts of a task lie that is written by hand.
PARTS = """\
[files.train]
path = "train.jsonl"
[files.validation]
path = "validation.jsonl"
[files.test]
path = "test.jsonl"
[splits.standard]
train = { files = "train" }
validation = { files = "validation" }
test = { files = "test" }
"""
TASK = (
    """
name = "tiny"
title = "tiny"
kind = "classification"
metric = "accuracy"
licence = "CC0"
citation = "none"
fields = ["a", "b"]
target = "label"
group = "image"
max_new_tokens = 6
default_split = "standard"
[labels]
e = "含意"
n = "中立"
c = "矛盾"
[formats]
paper = "文1: {a}[SEP]文2: {b}[SEP]"
"""
    + PARTS
    + """\
[splits.leaky]
train = { files = "test" }
validation = { files = "validation" }
test = { files = "test" }
"""
)


def save_task(folder: Path, num_rows: int = 24) -> Path:
    """A task file with its data: the label follows from whether the animal is the same and the
    place agrees."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(TASK, encoding="utf-8")
    animals, places = ["犬", "猫", "子ども"], ["公園", "庭", "台所"]
    for part, shift in (("train", 0), ("validation", 1), ("test", 2)):
        rows = []
        for number in range(num_rows if part == "train" else 9):
            animal, place = animals[(number + shift) % 3], places[(number // 3) % 3]
            label = "enc"[number % 3]
            other = {
                "e": "動物が外にいます。",
                "n": f"{animal}は魚を食べた。",
                "c": f"{animal}は{place}にいない。",
            }[label]
            rows.append(
                {
                    "a": f"{animal}が{place}を走っています。",
                    "b": other,
                    "label": label,
                    "image": str(number // 2),
                }
            )
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return folder / "tiny.toml"


CHOICE = (
    """
name = "tiny_choice"
title = "tiny_choice"
kind = "choice"
metric = "exact_match"
licence = "CC0"
citation = "none"
fields = ["question", "one", "two", "three"]
choices = ["one", "two", "three"]
target = "label"
max_new_tokens = 6
default_split = "standard"
[formats]
paper = "質問: {question}[SEP]1. {one}[SEP]2. {two}[SEP]3. {three}[SEP]"
"""
    + PARTS
)


def save_choice(folder: Path, num_rows: int = 24) -> Path:
    """A task of choices: the right one is the animal among two things."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny_choice.toml").write_text(CHOICE, encoding="utf-8")
    animals, things = ["犬", "猫", "子ども"], ["空", "庭", "台所", "公園"]
    for part, shift in (("train", 0), ("validation", 1), ("test", 2)):
        rows = []
        for number in range(num_rows if part == "train" else 9):
            right = (number + shift) % 3
            others = [things[number % 4], things[(number + 1 + shift) % 4]]
            if others[0] == others[1]:
                others[1] = things[(number + 2) % 4]
            choices = [*others[:right], animals[number % 3], *others[right:]]
            row = {"question": f"{number}番で走るのは何ですか？", "label": right}
            rows.append({**row, **dict(zip(("one", "two", "three"), choices, strict=True))})
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return folder / "tiny_choice.toml"


def save_other(task: Path, folder: Path, name: str, **source: str) -> Path:
    """A tiny task's rows under another name, each part from the part that `source` names (its own
    unless it is named)."""
    folder.mkdir()
    text = task.read_text(encoding="utf-8").replace('name = "tiny"', f'name = "{name}"')
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    for part in ("train", "validation", "test"):
        content = (task.parent / f"{source.get(part, part)}.jsonl").read_text(encoding="utf-8")
        (folder / f"{part}.jsonl").write_text(content, encoding="utf-8")
    return folder / f"{name}.toml"


TRAIN = {"learning_rate": 5e-3, "epochs": 2, "batch": 8, "precision": "fp32"}


def run_config(model_path: Path, task_path: Path, **changes: object) -> RunConfig:
    given = {
        "model": {"path": str(model_path), "name": "tiny"},
        "task": {"name": str(task_path)},
        "train": TRAIN,
        "lora": {"targets": "q+v", "rank": 2},
        **changes,
    }
    return parse(
        RunConfig, {key: value for key, value in given.items() if value is not None}, "test"
    )


STUDY = {
    "name": "tiny",
    "train": {"epochs": 2, "precision": "fp32"},
    "methods": [
        {
            "name": "LoRA",
            "kind": "lora",
            "grid": {"learning_rate": [1e-3, 1e-2], "targets": ["q+v"], "rank": [2]},
        },
        {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-3, 1e6], "batch": [16]}},
    ],
    "reference_rows": True,
}


def study_of(model: Path, task: Path) -> dict:
    return {
        **deepcopy(STUDY),  # which a test may change
        "models": [{"path": str(model), "name": "tiny"}],
        "tasks": [{"name": str(task)}],
    }


# The tables of a report on a classification task, before those of generated answers.
TABLES = [
    "scores",
    "costs",
    "pairs",
    "search",
    "failures",
    "confusion",
    "landscape",
    "settings",
    "grid",
]


def in_words(material: Material, language: Language = "en") -> list[InWords]:
    """Every table of a report as a reader sees it."""
    return [table.in_words(language) for table in all_tables(material)]
