"""What every step said: one entry a step. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class History:
    """Mean loss a target token, gradient norm, learning rate, seconds, tokens of every step.

    Of lanes that trained together, `step_s` is the step's time divided by the lanes that were in
    it.
    """

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
