"""Measures a run: seconds per step, tokens a second, memory. Says what it measures and on which
device.

On CUDA: peak allocated and reserved bytes of the caching allocator, step times from events. On a
CPU: the largest resident size of the whole process (Python and libraries included), step times
from the wall clock.
"""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from tsugiki.train.cost import Cost

WARM_UP_STEPS = 5


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = (
        torch.cpu.get_capabilities().get("cpu_name")
        if hasattr(torch.cpu, "get_capabilities")
        else None
    )
    return (
        f"CPU ({model or platform.processor() or platform.machine()}, {torch.get_num_threads()} "
        "threads)"
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a square matmul on a device, measured for so many seconds: what a step cannot
    exceed."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    count, start = 0, 0.0
    for warm in (True, False):
        start, count = time.perf_counter(), 0
        while count < 3 or (not warm and time.perf_counter() - start < seconds):
            left @ right
            count += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return 2 * size**3 * count / (time.perf_counter() - start)


def free_memory(device: torch.device) -> int:
    """Frees what nobody refers to any more on a device (models go in cycles), and the workspaces
    of matmuls, so that every run pays for its own; returns the bytes that are still held: no part
    of what a run that begins now costs. No CUDA-graph step may be open."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def peak_process_bytes() -> int:
    """Largest resident size the whole process ever had."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # Linux counts in KiB


class Meter:
    """Call `begin` before and `end` after each step; `settle` when the device was synchronised
    anyway."""

    def __init__(self, device: torch.device, peak_bytes: int = 0):
        """`peak_bytes` were allocated on the device while the steps to come were captured."""
        self.device, self.recorded_bytes = device, peak_bytes
        self.process_bytes = 0
        self._times: list[float] = []
        self._events: list[tuple[Any, Any]] = []
        self._start: Any = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def begin(self) -> None:
        if self.device.type == "cuda":
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._start = time.perf_counter()

    def end(self) -> None:
        if self.device.type == "cuda":
            stop = torch.cuda.Event(enable_timing=True)
            stop.record()
            self._events.append((self._start, stop))
        else:
            self._times.append(time.perf_counter() - self._start)
            self.process_bytes = peak_process_bytes()

    def settle(self) -> list[float]:
        """Seconds of each step since the last call; cheap once the device has caught up."""
        if self._events:
            self._events[-1][1].synchronize()
            self._times.extend(start.elapsed_time(stop) / 1000 for start, stop in self._events)
            self._events.clear()
        times, self._times = self._times, []
        return times

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """What is allocated on the device within does not count. (A process's resident size only
        grows: on a CPU it does.)"""
        if self.device.type == "cuda":
            self.recorded_bytes = self.memory_bytes
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def memory_bytes(self) -> int:
        if self.device.type != "cuda":
            return self.process_bytes
        return max(self.recorded_bytes, torch.cuda.max_memory_allocated(self.device))

    def cost(self, step_s: Sequence[float], step_tokens: Sequence[int], *, lanes: int) -> Cost:
        """Of a lane whose steps took so long and read so many tokens."""
        if not step_s:
            return Cost(device=device_name(self.device), num_steps=0, lanes=lanes)
        cuda, reserved = self.device.type == "cuda", None
        if cuda:
            # The peak of recording may lie before the last reset; no less was reserved then.
            reserved = max(torch.cuda.max_memory_reserved(self.device), self.memory_bytes)
        times, tokens = timed(step_s), timed(step_tokens)
        return Cost(
            device=device_name(self.device),
            num_steps=len(times),
            step_s_median=statistics.median(times) if times else None,
            step_s_mean=statistics.fmean(times) if times else None,
            tokens_per_s=sum(tokens) / sum(times) if times else None,
            peak_allocated_bytes=self.memory_bytes if cuda else None,
            peak_reserved_bytes=reserved,
            peak_process_bytes=None if cuda else self.process_bytes,
            lanes=lanes,
        )


def timed(values: Sequence[Any]) -> Sequence[Any]:
    """The steps that count: all after the warm-up."""
    return values[WARM_UP_STEPS:]
