"""Learning layer-wise schedules: which share of the tokens each part of a block computes at each step (DiffSparse)."""
