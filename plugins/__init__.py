"""Attention plugins, installed as `accelaes_export.plugins`. Nothing here imports the rest of the package."""
