"""How a part of a layer-wise step ranks tokens: which it computes first (DiffSparse, appendix A.5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class TocaScore:
    """λ and k of ToCa's composite score (DiffSparse, Eq. 10), as published.

    They are for entropies of unit norm over a picture's tokens. λ1, of the self-attention's influence, is 0 for every
    family with a text.

    Attributes:
        entropy: λ2, of the entropy of a token's attention to the text.
        reuse: λ3, of how often a token was reused since it was computed.
        bonus: λ4, added to the largest score of every square of tokens.
        side: k, of such a square.
    """

    entropy: float = 1.0
    reuse: float = 0.25 / 3
    bonus: float = 0.4
    side: int = 4


TOCA = MappingProxyType({"pixart": TocaScore(), "flux": TocaScore()})
"""By family. Others take PixArt's, which are FLUX's as well."""


def toca_score(entropy: torch.Tensor, reused: torch.Tensor, grid: tuple[int, int], weights: TocaScore) -> torch.Tensor:
    """[B, N]: λ2·s2 + λ3·s3, and λ4 more where that is the largest of its k x k square (Eq. 10).

    Args:
        entropy: s2 [B, N], Σ_j -o_j ln o_j of the attention to the text.
        reused: s3 [B, N], steps since the token was computed in this part.
        grid: rows and columns of a picture's tokens; a video has N of several frames, each with squares of its own.
    """
    entropy = torch.nn.functional.normalize(entropy, dim=1)
    score = weights.entropy * entropy + weights.reuse * reused
    return score + weights.bonus * _is_largest(score, grid, weights.side)


def _is_largest(score: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """[B, N] of 1 where the score is the largest of its square, else 0; squares at the edges are cut off."""
    rows, columns = grid
    missing = (-columns % side, -rows % side)
    frames = score.unflatten(1, (-1, rows, columns))  # [B, F, h, w]
    padded = torch.nn.functional.pad(frames, (0, missing[0], 0, missing[1]), value=-1e30)
    squares = padded.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, F, h/k, k, w/k, k]
    largest = (squares >= squares.amax(dim=(3, 5), keepdim=True)).to(score.dtype)
    return largest.flatten(4).flatten(2, 3)[:, :, :rows, :columns].flatten(1)


def unlike_score(tokens: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """[B, N]: one minus the cosine between a part's input [B, N, D] and what it was when each token was computed."""
    # As a distance of unit vectors: cosines of neighbouring steps differ from 1 by little more than fp32 resolves.
    now, then = (torch.nn.functional.normalize(rows.float(), dim=-1) for rows in (tokens, before))
    return (now - then).square().sum(dim=-1) / 2


def norm_score(tokens: torch.Tensor) -> torch.Tensor:
    """[B, N]: the Euclidean norm of every token of a part's input [B, N, D]."""
    return torch.linalg.vector_norm(tokens.float(), dim=-1)


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """[B, n]: of each token's attention to the text [B, H, n, M], in nats, its heads averaged before."""
    mean = attention.mean(dim=1)
    # Clamped, as the exporter takes a small enough summand for none: a masked word's 0 ln 0 is 0.
    return -(mean * torch.log(mean.clamp_min(1e-6))).sum(dim=-1)
