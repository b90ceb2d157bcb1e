"""What is trained with where a file does not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import build
from tsugiki.config.recipe import adapter_of, fill_run, multiple_of, rate_of
from tsugiki.config.run import ModelChoice
from tsugiki.config.study import StudySpec
from tsugiki.errors import ConfigError, ModelError
from tsugiki.model.width import known_width, width_of
from tsugiki.runs.request import run_config
from tsugiki.study.cells import expand
from tsugiki.toml import parse

GIVEN = {"model": {"path": "builtin"}, "task": {"name": "sample_nli"}}


def study(*methods: dict[str, object], **shared: object) -> StudySpec:
    given = {
        "name": "s",
        "models": [{"path": "builtin", "name": "mame"}],
        "tasks": [{"name": "sample_nli"}],
        "methods": [*methods],
        **shared,
    }
    return parse(StudySpec, given, "s")


WIDE, MAME = 2000, 384


def lora(rank: int = 16, scale: float = 1, **more: float) -> dict[str, float]:
    return {"rank": rank, "alpha": rank * scale, **more}


def test_the_rate_follows_width_rank_and_scale() -> None:
    assert rate_of("lora", WIDE, lora()) == 4e-4
    assert rate_of("lora", WIDE // 2, lora()) == pytest.approx(4e-4 * 2**0.781, rel=0.02)
    assert rate_of("lora", WIDE, lora(64)) == rate_of("lora", WIDE, lora(scale=2)) == 2e-4
    assert rate_of("lora", WIDE, lora(loraplus=16)) == 1e-4, "and B's at 16 times that"
    assert rate_of("lora", 512) == rate_of("lora", 512, lora(64, 2)) == 2.9e-4
    assert rate_of("lora", 512, lora(16, 2)) == 5.8e-4
    assert (rate_of("full", WIDE), rate_of("full", 512)) == (2.5e-5, 7.2e-5)


def test_the_rank_is_one_that_small_models_have() -> None:
    ranks = {width: adapter_of(width)["rank"] for width in (2, 32, 256, 4096)}
    assert ranks == {2: 1, 32: 8, 256: 64, 4096: 64}
    assert adapter_of(512)["alpha"] == 128


@pytest.mark.parametrize(
    ("rate", "multiple"),
    [(None, 1), ("1x", 1), ("0.5x", 0.5), (".5x", 0.5), ("0x", None), ("x", None), (1e-3, None)],
)
def test_multiples(rate: object, multiple: float | None) -> None:
    assert multiple_of(rate) == multiple


def test_lora_with_no_other_setting_is_the_recipe() -> None:
    config = run_config({**GIVEN, "method": "lora"}, "run")
    assert config.lora is not None
    assert (config.lora.targets, config.lora.rank, config.lora.alpha) == ("all-linear", 64, 128)
    assert (config.train.schedule, config.train.warmup) == ("linear", 0.05)
    assert config.train.learning_rate == rate_of("lora", MAME)
    full = run_config({**GIVEN, "method": "full", "train": {"epochs": 1}}, "run")
    assert (full.train.learning_rate, full.train.epochs) == (rate_of("full", MAME), 1)
    assert full.lora is None


def test_what_is_said_stays() -> None:
    """A rate of one's own leaves everything else as it always was; settings of one's own change the
    rate with their scale."""
    own = run_config({**GIVEN, "train": {"learning_rate": 1e-3}}, "run")
    assert own.lora is not None
    assert (own.lora.alpha, own.train.schedule, own.train.warmup) == (None, "constant", 0)
    half = run_config(
        {**GIVEN, "lora": {"rank": 8}, "train": {"learning_rate": "0.5x", "warmup": 0.1}}, "run"
    )
    assert half.lora is not None
    assert (half.lora.targets, half.lora.scale, half.train.warmup) == ("all-linear", 1, 0.1)
    assert half.train.learning_rate == pytest.approx(rate_of("lora", MAME, lora(8)) / 2, rel=0.06)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**GIVEN, "train": {"learning_rate": "fast"}}, "learning_rate"),
        ({**GIVEN, "train": 3}, "train"),
        ({**GIVEN, "lora": {"rnk": 8}}, r"rnk.*rank"),
        ({**GIVEN, "model": {"path": "./nowhere"}}, "no such folder"),
        ([], "run"),
    ],
)
def test_wrong_files_are_refused_as_before(given: object, message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        run_config(given, "run")  # type: ignore[arg-type]


def test_an_adapter_and_the_base_have_no_rate() -> None:
    config = run_config({**GIVEN, "method": "base"}, "run")
    assert config.train.schedule == "constant"
    assert fill_run({**GIVEN, "method": "full"}, 384)["train"]["learning_rate"] < 1e-3


def test_rows_of_a_study() -> None:
    """The cells hold numbers: what the tables show, and what a report is made from later."""
    cells = expand(
        study(
            {"name": "LoRA", "kind": "lora"},
            {"name": "wider", "kind": "lora", "grid": {"learning_rate": ["0.5x", "1x", 3e-3]}},
            {"name": "FT", "kind": "full", "grid": {"learning_rate": ["2x"]}},
            {"name": "base", "kind": "base"},
        )
    )
    rate, full = rate_of("lora", MAME), rate_of("full", MAME)
    rates = [cell.config.train.learning_rate for cell in cells]
    assert rates == pytest.approx([rate, rate / 2, rate, 3e-3, 2 * full, 1.0], rel=0.03)
    assert cells[0].settings == {
        "targets": "all-linear", "rank": 64, "alpha": 128, "learning_rate": rate,
    }  # fmt: skip
    assert {cell.config.train.schedule for cell in cells[:5]} == {"linear"}
    assert cells[5].config.train.schedule == "constant"
    assert all("x" not in str(value) for cell in cells[:3] for value in cell.settings.values())


@pytest.mark.parametrize("grid", [{"rank": [8, 16]}, {"rank": [8], "loraplus": [1, 16]}])
def test_a_grid_of_several_ranks_names_its_rates(grid: dict) -> None:
    with pytest.raises(ConfigError, match=r"rank and the scale.*several.*rank"):
        expand(study({"name": "LoRA", "kind": "lora", "grid": grid}))
    named = {**grid, "learning_rate": [1e-3]}
    cells = expand(study({"name": "LoRA", "kind": "lora", "grid": named}))
    assert {cell.config.train.learning_rate for cell in cells} == {1e-3}


@pytest.mark.parametrize("grid", [{"rank": [True]}, {"rank": [0]}, {"alpha": ["x"]}])
def test_a_wrong_adapter_is_one_line_where_the_rate_is_the_recipes(grid: dict) -> None:
    with pytest.raises(ConfigError, match=r"lora\.(rank|alpha)"):
        expand(study({"name": "LoRA", "kind": "lora", "grid": grid}))


def test_the_width_of_a_model(tmp_path: Path) -> None:
    build.save(tmp_path / "gpt2", "gpt2")
    assert width_of(ModelChoice(path=str(tmp_path / "gpt2"))) == build.gpt2().config.n_embd
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    odd = ModelChoice(path=str(tmp_path / "gpt2"))
    assert known_width(odd) is None
    with pytest.raises(ModelError, match=r"no size of hidden states.*Name train.learning_rate"):
        width_of(odd)
    assert known_width(ModelChoice(path="nobody/has-this")) is None
