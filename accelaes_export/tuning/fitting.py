"""Least squares: the weights that bring a step's result nearest to where the teacher is.

A token's prediction is d = Σ_j w_j E_j, E_j its last computed predictions. With guidance, d = (1 - s) Σ_j w^u_j u_j +
s Σ_j w^c_j c_j, where s is the scale. The best d would be (x* - x) / (σ_{i+1} - σ_i), x* where the teacher is at
σ_{i+1}. Fitted are the weights of E_0, E_0 - E_1 and E_1 - E_2, with a ridge towards the rule made by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from accelaes_export.policies.coefficients import DEPTH, MOST_APART, TokenClass, Weights

RIDGE = 1e-2
"""Of each column's mean square: how strongly weights are held to the rule."""

LEAST = 200
"""Tokens below which a class keeps the rule's weights."""

_AS_WEIGHTS = np.array([[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
"""Rows: what one of E_0, E_0 - E_1, E_1 - E_2 is in E_0, E_1, E_2."""


@dataclass(frozen=True)
class Key:
    """A class of tokens: age and gaps as `TokenClass` has them, and whether the last computed step left it out."""

    age: int
    gap: int
    earlier: int
    stale: bool

    @property
    def known(self) -> int:
        """How many of its predictions there are."""
        return 1 + (self.gap > 0) + (self.earlier > 0)

    def rule(self, theta: float) -> np.ndarray:
        """Made by hand: linear to θ of a step past this one, and stale tokens held."""
        far = (self.age + theta) / self.gap if self.gap and not self.stale else 0.0
        return np.array([1.0, far, 0.0])


@dataclass
class NormalEquations:
    """A class's, in float64: sums over its tokens' numbers."""

    columns: int
    numbers: int = 0
    tokens: int = 0
    square: np.ndarray = field(init=False)
    right: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.square, self.right = np.zeros((self.columns, self.columns)), np.zeros(self.columns)

    def add(self, columns: np.ndarray, wanted: np.ndarray, tokens: int) -> None:
        """Columns [numbers, k] and what their weighted sum is to be [numbers]."""
        self.square += columns.T @ columns
        self.right += columns.T @ wanted
        self.numbers += len(wanted)
        self.tokens += tokens

    def solved(self, rule: np.ndarray, used: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
        """The weights [k] that fit best, of the columns that are `used`; the others keep the rule's."""
        square, right = self.square / self.numbers, self.right / self.numbers
        rest = (right - square @ rule)[used]
        own = square[np.ix_(used, used)]
        found: np.ndarray = rule.copy()
        found[used] += np.linalg.solve(own + np.diag(ridge * np.diag(own) + 1e-12), rest)
        return found


def fitted(key: Key, sums: NormalEquations, theta: float) -> TokenClass:
    """A class's weights in both halves of guidance; without guidance both are the same."""
    halves = sums.columns // DEPTH
    rule = np.tile(key.rule(theta), halves)
    used = np.concatenate([np.arange(key.known) + DEPTH * half for half in range(halves)])
    own = rule if sums.tokens < LEAST else sums.solved(rule, used)
    weights: list[Weights] = [tuple(map(float, part @ _AS_WEIGHTS)) for part in own.reshape(halves, DEPTH)]  # type: ignore[misc]
    return TokenClass(key.age, key.gap, key.earlier, weights[0], weights[-1])


def lies_in_the_table(key: Key) -> bool:
    return max(key.age, key.gap, key.earlier) <= MOST_APART
