"""Tensors as a stream: the safetensors format, little host memory, and a kill at any file call."""

from __future__ import annotations

import builtins
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsugiki.train.checkpoint import LaneState, latest_checkpoint, read_checkpoint, save_checkpoint
from tsugiki.train.tensor_file import PIECE, TensorFile, write_tensors


def some() -> dict[str, torch.Tensor]:
    wide = torch.arange(24.0).view(4, 6)
    return {
        "param/a": torch.randn(3, 5),
        "part of rows": wide[:, :2],
        "turned": wide.t(),
        "half": torch.randn(7).bfloat16(),
        "step": torch.tensor(3.0),
        "whole": torch.arange(5),
        "none": torch.empty(0, 4),
    }


def test_it_is_safetensors_in_both_directions(tmp_path: Path) -> None:
    tensors = some()
    digest = write_tensors(tmp_path / "ours", tensors)
    theirs, ours = load_file(tmp_path / "ours"), TensorFile(tmp_path / "ours")
    assert len(digest) == 64
    assert set(theirs) == set(tensors) == set(ours)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)
        assert ours.shape(name) == tuple(tensor.shape)
    save_file({name: one.contiguous() for name, one in tensors.items()}, tmp_path / "theirs")
    assert all(
        torch.equal(one, tensors[name]) for name, one in TensorFile(tmp_path / "theirs").items()
    )


def test_a_tensor_of_several_pieces_is_read_into_any_place(tmp_path: Path) -> None:
    long = torch.randn(PIECE // 4 * 2 + 13)
    write_tensors(tmp_path / "file", {"long": long, "wide": torch.randn(9, 4)})
    target = torch.empty(9, 8)
    file = TensorFile(tmp_path / "file")
    file.copy_to("wide", target[:, ::2])
    assert torch.equal(target[:, ::2], file["wide"])
    assert torch.equal(file["long"], long)
    with pytest.raises(AssertionError, match="long"):
        file.copy_to("long", torch.empty(3))


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, some())
    whole = path.read_bytes()
    for content in (whole[:5], whole[:-3], b"\xff" * 100, whole.replace(b"F32", b"F99", 1)):
        path.write_bytes(content)
        with pytest.raises((ValueError, KeyError)):
            TensorFile(path)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from tsugiki.train.checkpoint import LaneState, read_checkpoint, save_checkpoint
from tsugiki.train.tensor_file import put_tensor
torch.set_num_threads(1)
state = {"a": torch.randn(60 * 2**20), "b": torch.randn(40 * 2**20)}  # 400 MiB
state["c"] = state["a"].view(-1, 1024)[:, :512]  # not in one piece
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
save_checkpoint(Path(sys.argv[1]), 1, {"small": torch.zeros(9)}, LaneState())
before = peak()
path = save_checkpoint(Path(sys.argv[1]), 2, state, LaneState())
saved = peak()
tensors, _ = read_checkpoint(path)
for name in state:
    put_tensor(tensors, name, state[name])
print(saved - before, peak() - saved)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_a_state_of_any_size_takes_little_host_memory(tmp_path: Path) -> None:
    """402 MiB more to save 400 MiB, 801 more to read them, it was."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    extra = [float(number) for number in done.stdout.split()]
    assert max(extra) < 64, extra


class Killed(BaseException):
    """The process is gone: nothing that comes after is done either."""


@pytest.mark.parametrize("older", [0, 1])
def test_a_kill_at_any_file_call_leaves_a_state_that_restarts(
    older: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes files, and halfway through the deletion of a folder."""
    place, kills = 0, 0
    while True:
        folder = tmp_path / str(place)
        for step in range(1, older + 1):
            save_checkpoint(folder, step, {"w": torch.full((4,), float(step))}, LaneState())
        with monkeypatch.context() as patched:
            _die_at(patched, place)
            try:
                save_checkpoint(folder, 9, {"w": torch.full((4,), 9.0)}, LaneState())
                ended = True
            except Killed:
                ended, kills = False, kills + 1
        latest = latest_checkpoint(folder)
        if latest is not None:
            tensors, state = read_checkpoint(latest)
            assert state.step in (older, 9)
            assert torch.equal(tensors["w"], torch.full((4,), float(state.step)))
        assert older == 0 or latest is not None, f"nothing to go on from after call {place}"
        save_checkpoint(folder, 10, {"w": torch.zeros(4)}, LaneState())
        assert latest_checkpoint(folder) == folder / "step-00000010"
        if ended:
            break
        place += 1
    assert kills == place >= 8


def _die_at(patched: pytest.MonkeyPatch, place: int) -> None:
    """Lets so many changes of files through; then nothing more."""
    left = [place]

    def dying(real: Callable[..., Any], before: Callable[..., Any] | None = None) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if left[0] <= 0:
                if left[0] == 0 and before is not None:
                    before(*given)
                left[0] = -1
                raise Killed
            left[0] -= 1
            return real(*given, **named)

        return call

    def half_removed(path: Path, *others: Any) -> None:
        for name in ("state.json", "lane.safetensors"):
            if (Path(path) / name).exists():
                os.unlink(Path(path) / name)
                return

    patched.setattr(shutil, "rmtree", dying(shutil.rmtree, half_removed))
    for name in ("replace", "fsync"):
        patched.setattr(os, name, dying(getattr(os, name)))
    for name in ("mkdir", "open", "write_text"):
        patched.setattr(Path, name, dying(getattr(Path, name)))
    patched.setattr(builtins, "open", dying(builtins.open))
