"""The loop: bit-identical resume, health, divergence, schedules, damaged checkpoints."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.errors import RunError
from tsugiki.model.lora import attach
from tsugiki.train.checkpoint import LaneState, latest_checkpoint, read_checkpoint, save_checkpoint
from tsugiki.train.engine import Interrupted, Progress, fit
from tsugiki.train.lane import Lane, OneVector, rate_share
from tsugiki.train.step import EagerStep, StepResult


class StopAt:
    """A step that behaves as if Ctrl-C came during step number `at`."""

    def __init__(self, inner: EagerStep, at: int):
        self.inner, self.at = inner, at

    def __call__(self, lanes: Sequence[Lane]) -> list[StepResult]:
        result = self.inner(lanes)
        if lanes[0].step == self.at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return result


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_stopped_run_goes_on_to_the_same_bits(method: str, stop: int, tmp_path: Path) -> None:
    settings = config(schedule="cosine", warmup=0.2)

    def lane() -> tuple[EagerStep, Lane]:
        model = build.llama()
        made = lane_of(model, settings, method, 10)
        return EagerStep(model, rows(), 3, CPU, FP32), made

    step, whole = lane()
    straight = fit(step, [whole], CPU, folders=[None])[0]
    step, first = lane()
    with pytest.raises(Interrupted, match=f"checkpoint at step {stop} of 9"):
        fit(StopAt(step, stop), [first], CPU, folders=[tmp_path])
    step, second = lane()
    resumed = fit(step, [second], CPU, folders=[tmp_path])[0]
    assert resumed.resumed_from == stop
    assert resumed.history.loss == straight.history.loss
    assert len(resumed.history.step_s) == 9
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name


def test_dropout_is_drawn_from_counters_so_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    def lane() -> tuple[EagerStep, Lane]:
        model = build.llama()
        grafted = attach(model, LoraConfig(targets="all-linear", rank=4, dropout=0.3), seed=0)
        return EagerStep(model, rows(), 3, CPU, FP32), Lane(
            "LoRA", grafted.parameters, config(), 10, moves=OneVector(grafted)
        )

    step, whole = lane()
    straight = fit(step, [whole], CPU, folders=[None])[0].history.loss
    step, first = lane()
    with pytest.raises(Interrupted):
        fit(StopAt(step, 5), [first], CPU, folders=[tmp_path])
    torch.manual_seed(99)
    step, second = lane()
    assert fit(step, [second], CPU, folders=[tmp_path])[0].history.loss == straight
    assert straight != fit(*_without_dropout(), CPU, folders=[None])[0].history.loss


def _without_dropout() -> tuple[EagerStep, list[Lane]]:
    model = build.llama()
    grafted = attach(model, LoraConfig(targets="all-linear", rank=4), seed=0)
    return EagerStep(model, rows(), 3, CPU, FP32), [
        Lane("LoRA", grafted.parameters, config(), 10, moves=OneVector(grafted))
    ]


def test_an_adapter_that_no_gradient_reaches_stops_the_run() -> None:
    model = build.llama()
    grafted = attach(model, LoraConfig(targets="all-linear", rank=4), seed=0)
    dead = (
        next(name for name in grafted.parameters if name.endswith("down.B"))
        if any(n.endswith("down.B") for n in grafted.parameters)
        else ""
    )
    dead = dead or next(name for name in grafted.parameters if name.endswith(".B"))
    watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
    lane = Lane("LoRA", grafted.parameters, config(), 10, moves=OneVector(grafted), watched=watched)
    grafted.parameters[dead].requires_grad_(False)
    failure = fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])[0].failure
    assert f"1 of {len(watched)} trained matrices have not moved, the first is {dead}" in (
        failure or ""
    )
    assert lane.step == 3


def test_divergence_is_named_with_its_step() -> None:
    model = build.llama()
    lane = lane_of(model, config(learning_rate=1e18), "full", 10)
    failure = fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])[0].failure
    assert re.search(
        r"the loss is (nan|inf) at step \d+: training diverged. Lower the learning rate",
        failure or "",
    )


def test_progress_is_told_with_the_time_left() -> None:
    model = build.llama()
    lane = lane_of(model, config(epochs=10), "lora", 10)
    heard: list[Progress] = []
    result = fit(
        EagerStep(model, rows(), 3, CPU, FP32),
        [lane],
        CPU,
        folders=[None],
        on_progress=heard.append,
    )[0]
    assert [one.step for one in heard] == [10, 20, 30]
    assert heard[-1].left_s == 0
    assert heard[0].left_s > 0
    assert result.history.loss[-1] < result.history.loss[0] - 0.3
    assert result.cost.num_steps == 25
    assert result.cost.peak_process_bytes > 1e7


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.2}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "wsd", "decay": 0.4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
    ],
)
def test_schedules(schedule: dict, expected: list[float]) -> None:
    train = TrainConfig(learning_rate=1.0, **schedule)
    assert [rate_share(train, step, 10) for step in range(10)] == pytest.approx(expected)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"param/w": torch.ones(4)}, LaneState(steps_with_lr=3))
    tensors, state = read_checkpoint(path)
    assert torch.equal(tensors["param/w"], torch.ones(4))
    assert state.step == 3
    file = path / "lane.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"lane\.safetensors: damaged or cut short"):
        read_checkpoint(path)
    (path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="checkpoint cannot be read"):
        read_checkpoint(path)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"param/w": torch.ones(4)}, LaneState())
    (tmp_path / ".step-00000009.77").mkdir()
    newest = save_checkpoint(tmp_path, 2, {"param/w": torch.ones(4)}, LaneState())
    assert [path.name for path in tmp_path.iterdir()] == [newest.name]
    assert latest_checkpoint(tmp_path) == newest


@pytest.mark.skipif(
    not Path("/dev/full").exists() or not Path("/dev/shm").exists(), reason="needs Linux"
)
def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = save_checkpoint(tmp_path, 1, {"param/w": torch.ones(4)}, LaneState())
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            save_checkpoint(tmp_path, 2, {"param/w": torch.ones(100_000)}, LaneState())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert latest_checkpoint(tmp_path) == older
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    shutil.rmtree(older)


def test_memory_on_a_cpu_is_a_peak_not_what_is_left_after_the_step() -> None:
    from tsugiki.train.meter import peak_process_bytes

    before = peak_process_bytes()
    block = torch.ones(40_000_000)
    del block
    assert peak_process_bytes() >= before
    import psutil

    assert peak_process_bytes() >= psutil.Process().memory_info().rss
