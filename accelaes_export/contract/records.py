"""What every stored record is: a pydantic model that doesn't change, and takes no field it doesn't know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Written once, read as it was written; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
