"""The look at a model on a card: what is taken, what takes the plain step, and a run in bf16 from
one end to the other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests import build
from tests.build import TRAIN, run_config
from tests.model.test_look import REFUSED, TAKEN, saved
from tsugiki.config.run import ModelChoice
from tsugiki.errors import ModelError
from tsugiki.fast.attention import packed_states
from tsugiki.fast.cuda_graphs import why_eager, why_no_cuda_graphs
from tsugiki.model.loading import find_base, load_base
from tsugiki.model.look import look_of, rows_stay_apart
from tsugiki.runs.finished import score_run
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
APART = {"mistral", "gemma", "phi3", "olmo2"}


@pytest.fixture(autouse=True)
def on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_DEVICE", "cuda")


@pytest.mark.parametrize("kind", list(TAKEN))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_taken_on_a_cpu_is_taken_in_bf16_on_a_card(
    kind: str, method: str, tmp_path: Path
) -> None:
    choice = ModelChoice(path=str(saved(TAKEN[kind], tmp_path)))
    base = load_base(find_base(choice, method, "bf16"))  # type: ignore[arg-type]
    if kind in APART:
        assert look_of(base.model).cached
        assert why_no_cuda_graphs(base.model, base.device, base.numerics) is None
        assert rows_stay_apart(
            base.model, partial(packed_states, base.model, base.numerics.autocast(base.device))
        )
    if kind in ("lfm2", "mamba"):
        assert "training is slower (eager step)" in (
            why_eager(base.model, base.device, base.numerics, "auto") or ""
        )


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_refused_on_a_cpu_is_refused_in_bf16_on_a_card(kind: str, tmp_path: Path) -> None:
    config, message = REFUSED[kind]
    # Of two faults the nearer one.
    with pytest.raises(ModelError, match=f"{message}|changes its logits"):
        load_base(find_base(ModelChoice(path=str(saved(config, tmp_path))), "lora", "bf16"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_from_one_end_to_the_other(method: str, task_file: Path, tmp_path: Path) -> None:
    folder = build.save(tmp_path / "model", "broad llama")
    changes = {"method": "full", "lora": None} if method == "full" else {}
    [record] = run_group(
        [run_config(folder, task_file, train={**TRAIN, "precision": "auto"}, **changes)],
        Store(tmp_path),
    )
    record = score_run(record, "test")
    assert record.provenance.numerics.compute == "bf16"
    assert record.outcome.step.startswith("cuda_graph")
    assert record.outcome.ends == ("</s>",)
    assert record.losses[-1] < record.losses[0]
