"""Schemas: strict, all mistakes at once, overrides."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.config.old_spellings import in_new_spelling
from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import ConfigError, DataError
from tsugiki.toml import override, parse, read_toml

ASKED = {"model": {"path": "builtin"}, "task": {"name": "jnli"}, "train": {"learning_rate": 1e-3}}


def test_lora_is_the_default_and_its_scale_is_one() -> None:
    config = parse(RunConfig, ASKED, "here")
    assert config.method == "lora"
    assert config.lora is not None
    assert config.lora.scale == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, 'trian: unknown key. Did you mean "train"?'),
        (
            {"train": {"learning_rate": 1e-3, "epoch": 2}},
            'train.epoch: unknown key. Did you mean "epochs"?',
        ),
        ({"train": {"learning_rate": -1}}, "train.learning_rate: must be greater than 0, got -1"),
        ({"train": {}}, "train.learning_rate: missing, must be given"),
        ({"train": {"learning_rate": 1e-3, "decay": 0.2}}, 'decay: only schedule = "wsd" reads it'),
        (
            {"train": {"learning_rate": 1e-3, "batch": 8, "micro_batch": 3}},
            "micro_batch: must divide batch (8), got 3",
        ),
        ({"method": "full", "lora": {"rank": 4}}, 'method = "full" would ignore it'),
    ],
)
def test_each_mistake_says_where_what_and_what_to_do(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(RunConfig, {**ASKED, **change}, "run.toml")
    assert message in str(raised.value)
    assert str(raised.value).startswith("run.toml: ")


def test_all_mistakes_stand_in_one_message() -> None:
    with pytest.raises(ConfigError, match=r"2 mistakes.*rank.*batch"):
        parse(
            RunConfig,
            {**ASKED, "lora": {"rank": 0}, "train": {"learning_rate": 1e-3, "batch": 0}},
            "run.toml",
        )


def test_a_study_names_the_key_of_a_nested_table() -> None:
    study = {
        "name": "s",
        "models": [{"path": "builtin", "rev": "x"}],
        "tasks": [{"name": "jnli"}],
        "methods": [{"name": "LoRA", "kind": "lora"}],
    }
    with pytest.raises(
        ConfigError, match=r"s.toml: models.0.rev: unknown key. Known: base, name, path, revision$"
    ):
        parse(StudySpec, study, "s.toml")


def test_a_date_where_a_text_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("version = 2023-01-01\n", encoding="utf-8")
    given = override(read_toml(tmp_path / "run.toml"), [])
    with pytest.raises(ConfigError, match="version: unknown key"):
        parse(RunConfig, given, "run.toml")


def test_overrides_reach_into_tables_and_read_toml_values() -> None:
    changed = override(
        ASKED, ["train.epochs=2", "train.schedule=cosine", 'task.name="x"', "lora.rank=4"]
    )
    assert changed["train"] == {"learning_rate": 1e-3, "epochs": 2, "schedule": "cosine"}
    assert changed["task"]["name"] == "x"
    assert changed["lora"]["rank"] == 4
    assert "lora" not in ASKED
    with pytest.raises(ConfigError, match="must read key=value"):
        override(ASKED, ["train.epochs"])


@given(
    rate=st.floats(1e-6, 1.0),
    epochs=st.integers(1, 9),
    rank=st.integers(1, 64),
    seed=st.integers(0, 99),
)
def test_a_config_survives_json(rate: float, epochs: int, rank: int, seed: int) -> None:
    asked = {
        **ASKED,
        "lora": {"rank": rank},
        "train": {
            "learning_rate": rate,
            "epochs": epochs,
            "seed": seed,
            "schedule": "wsd",
            "decay": 0.3,
        },
    }
    config = parse(RunConfig, asked, "here")
    again = parse(
        RunConfig,
        json.loads(json.dumps(config.model_dump(mode="json", exclude_none=True))),
        "there",
    )
    assert again == config


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "x\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        read_toml(path)
    with pytest.raises(DataError, match="no such file"):
        read_toml(tmp_path / "absent.toml", DataError)


@pytest.mark.parametrize("given", ["fp16", "float16"])
def test_fp16_is_refused_with_the_reason(given: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"train.precision: fp16 is not offered: its gradients under- and overflow",
    ):
        parse(
            RunConfig,
            {
                "model": {"path": "builtin"},
                "task": {"name": "jnli"},
                "train": {"learning_rate": 1e-3, "precision": given},
            },
            "run.toml",
        )


def test_a_card_without_bf16_computes_in_fp32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tsugiki.model.numerics import pick_numerics, why_fp32

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    numerics = pick_numerics("lora", "auto", cuda)
    assert (numerics.compute, numerics.base) == ("fp32", "fp32")
    assert "Tesla T4 has no fast bf16 matmuls: this run computes in fp32" in (
        why_fp32("auto", numerics, cuda) or ""
    )
    assert why_fp32("fp32", numerics, cuda) is None
    assert why_fp32("auto", numerics, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": True}, "train.learning_rate: must be a number, got true"),
        ({"epochs": True}, "train.epochs: must be a number, got true"),
        ({"learning_rate": float("inf")}, "train.learning_rate: "),
        ({"learning_rate": float("nan")}, "train.learning_rate: "),
        ({"learning_rate": 1e24}, "train.learning_rate: must be less than or equal to"),
        ({"epochs": 1e24}, "train.epochs: must be less than or equal to 10000"),
        ({"batch": 10**24}, "train.batch: must be less than or equal to"),
        ({"seed": 2**32}, "train.seed: must be less than"),
        ({"long_rows": "drop"}, "train.long_rows: must be 'refuse' or 'leave_out'"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(change: dict, message: str) -> None:
    given = {
        "model": {"path": "builtin"},
        "task": {"name": "jnli"},
        "train": {"learning_rate": 1e-3, **change},
    }
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, given, "run.toml")


@pytest.mark.parametrize("name", ["a\0b", "a\udcffb"])
def test_texts_that_no_file_system_takes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="holds a NUL, or bytes that are not UTF-8"):
        parse(
            RunConfig,
            {"model": {"path": name}, "task": {"name": "jnli"}, "train": {"learning_rate": 1e-3}},
            "run.toml",
        )


def test_nan_is_no_old_spelling() -> None:
    """It is not equal to itself, which once made a renamed value of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_new_spelling("train", {"schedule": math.nan}).keys() == {"schedule"}
