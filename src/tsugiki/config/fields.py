"""What the schemas are made of: the frozen record, numbers within bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _a_number(given: Any) -> Any:
    if isinstance(given, bool):  # which Python counts as 1
        raise ValueError(f"must be a number, got {str(given).lower()}")
    return given


IsNumber = BeforeValidator(_a_number)


Positive = Annotated[int, IsNumber, Field(gt=0, le=10**9)]


Count = Annotated[int, IsNumber, Field(ge=0, le=10**9)]


Seed = Annotated[int, IsNumber, Field(ge=0, lt=2**32)]


Share = Annotated[float, IsNumber, Field(ge=0, le=1)]


Word = Annotated[str, Field(pattern=r"\S")]


Above0 = Annotated[float, IsNumber, Field(gt=0, le=1e20, allow_inf_nan=False)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, protected_namespaces=(), defer_build=True
    )
