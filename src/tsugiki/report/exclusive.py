"""What a run costs by itself, not among others that trained beside it or with it."""

from __future__ import annotations

from tsugiki.runs.reading import RunRecord
from tsugiki.train.cost import Cost

PAPER_BATCH = 8


def exclusive_step_s(record: RunRecord) -> float | None:
    """Median seconds per step at the paper's batch of 8, beside nothing else of the study."""
    cost = (record.outcome.exclusive_cost or {}).get(PAPER_BATCH)
    return cost.step_s_median if cost else None


def cost_of_one(record: RunRecord) -> Cost | None:
    """The cost that holds this run's own memory, at its own batch: of the probe, or of the run
    itself where it trained alone. None where only the memory of all that trained together is
    known."""
    measured = (record.outcome.exclusive_cost or {}).get(record.config.train.batch)
    own = record.cost()
    return measured or (own if own.lanes == 1 else None)


def peak_of_one(record: RunRecord) -> int | None:
    """Peak of PyTorch's allocator in bytes, of this run alone."""
    cost = cost_of_one(record)
    return cost.peak_allocated_bytes if cost else None
