"""What the ledger foretells: what was measured on a card, how a step is made to fit, how many rows
and lanes; and what `check` says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.memory import errors, foretold, halves
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

from tests import build
from tests.build import run_config, study_of
from tests.parity.test_training import config, rows
from tsugiki.cli.check import check_file
from tsugiki.config.run import RunConfig
from tsugiki.model.loading import num_parameters
from tsugiki.model.nf4 import stored_bytes
from tsugiki.model.quantise import quantise_layers
from tsugiki.runs.methods import method_of
from tsugiki.study import fitting
from tsugiki.study.fitting import Device, fits_of, fits_text, refuse
from tsugiki.train.ledger import (
    Ledger,
    Load,
    first_that_fits,
    lanes_that_fit,
    ledger_in_full,
    load_of,
    rows_that_fit,
    sizes_of,
    smaller_loads,
)
from tsugiki.train.memory import NoRoom

KEPT = Path("benchmarks/memory.json")
CASES = json.loads(KEPT.read_text(encoding="utf-8"))["cases"] if KEPT.exists() else {}
LOAD = Load(rows=8, tokens=800, targets=24, longest=120)


def test_what_is_foretold_is_what_was_measured() -> None:
    """Within a tenth on the half of the cases that nothing was fitted on."""
    fitted, unseen = halves(CASES)
    assert len(fitted) + len(unseen) >= 40
    wrong = {name: f"{error:+.1%}" for name, error in errors(unseen).items() if abs(error) > 0.1}
    assert not wrong, wrong
    kinds = {name.split(" · ")[3] for name in unseen}
    assert {"LoRA", "8 lanes", "24 lanes", "NF4", "FT"} <= kinds


def test_a_case_that_has_twice_the_rows_is_foretold_to_take_more() -> None:
    """The half above is held only if a change of what is counted shows."""
    _, unseen = halves(CASES)
    for case in unseen.values():
        more = {**case, "load": {**case["load"], "tokens": 2 * case["load"]["tokens"]}}
        assert foretold(more).total > foretold(case).total


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "neox"])
def test_sizes_are_those_of_the_model(kind: str) -> None:
    model = build.MODELS[kind]()
    sizes = sizes_of(model)
    assert sizes.parameters == num_parameters(model)
    assert sizes.stored("fp32") == stored_bytes(model)
    assert (sizes.glu, sizes.rotary) == (kind in ("llama", "qwen3"), kind != "gpt2")
    quantise_layers(model, torch.device("cpu"), torch.float32)
    dense = 4 * (sizes.parameters - sizes.in_layers)
    codes = sizes.stored("nf4") - 2 * (sizes.parameters - sizes.in_layers) - 2 * sizes.largest
    assert stored_bytes(model) == pytest.approx(dense + codes)


@pytest.mark.parametrize("kind", ["mamba", "bloom"])
def test_models_of_no_known_layout_are_counted_too(kind: str) -> None:
    """Full fine-tuning takes them: looking at them must not end in an error."""
    made = {
        "mamba": lambda: MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
        ),
        "bloom": lambda: BloomForCausalLM(
            BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
        ),
    }
    model = made[kind]()
    sizes = sizes_of(model)
    assert sizes.parameters == num_parameters(model)
    held = ledger_in_full(sizes, build_full(8).train, LOAD)
    assert held.weights == 4 * sizes.parameters
    assert held.activations > 0


def test_the_largest_backward_pass_is_that_of_the_run() -> None:
    train = config(epochs=3, batch=4)
    lengths = [len(row) for row in rows()]
    load = load_of(rows(), [train, train.model_copy(update={"seed": 3})])
    assert load.lanes == 2
    assert sum(sorted(lengths)[:4]) <= load.tokens <= sum(sorted(lengths)[-4:])
    cut = load_of(rows(), [train.model_copy(update={"micro_batch": 1})])
    assert cut.tokens == load.longest == max(lengths)
    assert load_of(rows(), [train.model_copy(update={"epochs": 0.25})]).tokens <= load.tokens


def test_ways_take_less_and_less_and_end_at_the_longest_row() -> None:
    sizes = replace(sizes_of(build.llama()), layers=24, parameters=10**8, largest=10**6)
    full = build_full(8).train

    def in_full(load: Load) -> Ledger:
        return ledger_in_full(sizes, full, load)

    tried = [*smaller_loads(LOAD, frozen=True)]
    assert [way.tokens for way in tried] == [800, 400, 200] * 2
    assert [way.recomputed for way in tried] == [False] * 3 + [True] * 3
    assert [(way.recomputed, way.by_layer) for way in smaller_loads(LOAD, frozen=False)] == [
        (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip
    totals = [in_full(way).total for way in smaller_loads(LOAD, frozen=False)]
    assert totals[0] > totals[1] > totals[3]
    assert first_that_fits(in_full, smaller_loads(LOAD, frozen=False), totals[1]) == replace(
        LOAD, recomputed=True
    )
    assert first_that_fits(in_full, smaller_loads(LOAD, frozen=False), 1.0) is None


def build_full(batch: int) -> RunConfig:
    return run_config(
        Path("m"), Path("t"), method="full", lora=None,
        train={"learning_rate": 1e-3, "batch": batch},
    )  # fmt: skip


def test_rows_and_lanes_that_fit_are_the_most() -> None:
    sizes = sizes_of(build.llama())
    lora = run_config(Path("m"), Path("t"))
    of = method_of(lora).ledger(sizes, build.llama(), lora, fitting._numerics(lora))
    free = 3 * of(LOAD).total
    most = rows_that_fit(of, LOAD, free)
    part = LOAD.tokens // LOAD.rows
    assert of(replace(LOAD, tokens=part * most, targets=3 * most)).total <= free
    assert of(replace(LOAD, tokens=part * (most + 1), targets=3 * (most + 1))).total > free
    lanes = lanes_that_fit(of, LOAD, free, 500)
    assert of(replace(LOAD, lanes=lanes)).total <= free
    assert lanes == 96 or of(replace(LOAD, lanes=lanes + 1)).total > free
    assert lanes_that_fit(of, LOAD, free, 3) == 3
    assert lanes_that_fit(of, LOAD, 0.0, 3) == 1, "the step itself says whether one fits"


def test_what_does_not_fit_on_this_device_is_refused_with_its_largest_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "room", lambda device: (10**6, 10**6))
    full, device = build_full(8), Device(name="cuda", total=1e6, there=True)
    [fits] = fits_of(build.llama(), [full], rows(), device)
    assert "does not fit on cuda" in fits_text(fits, device)
    with pytest.raises(
        NoRoom, match=r'FT does not fit: .* take .* moments = "8bit" under \[train\]'
    ):
        refuse(fits, device)
    elsewhere = replace(device, there=False)
    refuse(fits, elsewhere)  # planned for another machine: said, not refused


def test_check_says_what_each_kind_of_configuration_holds(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = study_of(model_folder, task_file)
    given["methods"].append({**given["methods"][0], "name": "QLoRA", "base": "nf4"})
    path = tmp_path / "study.toml"
    lines = [f"name = {json.dumps(given['name'])}", "[train]", "epochs = 2"]
    lines += ["[[models]]", f"path = {json.dumps(str(model_folder))}"]
    lines += ["[[tasks]]", f"name = {json.dumps(str(task_file))}"]
    for method in given["methods"]:
        base = ['base = "nf4"'] if "base" in method else []
        lines += ["[[methods]]", f'name = "{method["name"]}"', f'kind = "{method["kind"]}"', *base]
        lines += ["[methods.grid]", "learning_rate = [1e-3, 2e-3]"]
    path.write_text("\n".join(lines), encoding="utf-8")
    said = "\n".join(check_file(path, memory_gib=24))
    for name in ("LoRA, 2 configurations", "LoRA over nf4, 2 configurations", "FT, 2 config"):
        assert f"memory: {name}" in said, said
    assert "on a CUDA device of 24 GiB" in said
    assert "2 train together" in said
    assert "backward passes of up to" in said
    small = "\n".join(check_file(path, memory_gib=0.1))
    assert "does not fit on a CUDA device of 0.1 GiB" in small
