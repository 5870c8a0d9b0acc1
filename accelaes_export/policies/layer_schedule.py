"""A layer-wise schedule: what share of the tokens every part of every block computes at every step. Data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from accelaes_export.errors import InputError, shortened

Ranking = Literal["toca", "similarity", "norm"]
"""How a part ranks tokens: ToCa's composite score, cosine similarity to its cached input, norm of its input."""
RANKINGS: tuple[str, ...] = get_args(Ranking)
CANDIDATES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""S, the shares that schedules are searched among (DiffSparse, Table 7)."""


@dataclass(frozen=True)
class LayerSchedule:
    """Shares s in [0, 1] of the N tokens, a row a step.

    Attributes:
        ranking: how parts rank their tokens: toca, similarity or norm.
        parts: of the blocks, in the order they are computed in: "0.attn", "0.ff", ...
        keep: T rows of a share for each part; the first row is all ones, as nothing is cached yet.

    Raises:
        InputError: for shares that aren't such a table.
    """

    ranking: str
    parts: tuple[str, ...]
    keep: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "keep", tuple(map(tuple, self.keep)))
        if self.ranking not in RANKINGS:
            raise InputError(
                f"The schedule's ranking is {shortened(self.ranking)!r}; allowed are {', '.join(RANKINGS)}: give one."
            )
        if not self.parts or len(set(self.parts)) != len(self.parts):
            raise InputError("The schedule has no parts, or one twice; name each part of the blocks once.")
        if len(self.keep) < 2:
            raise InputError(f"The schedule has {len(self.keep)} steps; give it at least 2.")
        for i, row in enumerate(self.keep):
            if len(row) != len(self.parts):
                raise InputError(
                    f"Step {i} of the schedule has {len(row)} shares for {len(self.parts)} parts; give one for each."
                )
            wrong = next((s for s in row if not _is_share(s)), None)
            if wrong is not None:
                raise InputError(
                    f"Step {i} of the schedule has the share {shortened(wrong)!r}; allowed are numbers from 0 to 1: "
                    "correct it."
                )
        if any(s != 1 for s in self.keep[0]):
            raise InputError("The schedule's first step must compute all: nothing is cached yet; make its row ones.")

    @classmethod
    def of(cls, given: LayerSchedule | Mapping[str, Any]) -> LayerSchedule:
        """The schedule from plain data; InputError for what isn't one."""
        if isinstance(given, LayerSchedule):
            return given
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise InputError(f"A schedule is given by {', '.join(names)}, and {shortened(given)!r} isn't.")
        parts, keep = given["parts"], given["keep"]
        if not _is_list(parts) or not all(isinstance(part, str) for part in parts):
            raise InputError("A schedule's parts are a list of names; correct it.")
        if not _is_list(keep) or not all(map(_is_list, keep)):
            raise InputError("A schedule's keep is a list of rows of shares; correct it.")
        return cls(**given)

    def data(self) -> dict[str, Any]:
        """As plain data, from which `of` makes it again."""
        return asdict(self)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.keep)

    @property
    def share(self) -> float:
        """Of all steps and parts together: 0.46 where 54 % are saved."""
        return math.fsum(s for row in self.keep for s in row) / (self.steps * len(self.parts))


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def counts_of(row: Sequence[float], tokens: int) -> tuple[int, ...]:
    """n of every part of a step's row of shares, of `tokens` = N."""
    return tuple(round(share * tokens) for share in row)


def parse_ranking(given: object) -> object:
    """How a layer-wise step ranks tokens: a name, or "none" for no such step.

    Raises:
        InputError: another word.
    """
    words = given.strip().lower() if isinstance(given, str) else given
    if words in (None, "none"):
        return None
    if words not in RANKINGS:
        raise InputError(f"Layer-wise steps can't rank tokens by {given!r}; give {', '.join(RANKINGS)} or none.")
    return words
