"""Attention plugins, installed as `accelaes_export.plugins`. Nothing here imports the rest of the package.

This release has none: attention is the standard-op body of the `accelaes::SparseQueryAttention` function.
"""
