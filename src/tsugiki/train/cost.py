"""What a run cost: seconds per step, tokens a second, memory. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run cost. Times exclude the first steps (the meter's warm-up); memory covers all of
    it.

    Of `lanes` that trained together, times are a lane's share of the step, and memory is that of
    all. None is what a device does not tell, or what was not measured.
    """

    device: str
    num_steps: int
    step_s_median: float | None = None
    step_s_mean: float | None = None
    tokens_per_s: float | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_process_bytes: int | None = None
    lanes: int = 1
