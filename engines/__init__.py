"""Recipes, published figures and the shipped checkpoint, installed as `accelaes_export.engines` package data.

    recipes/NAME.yaml       what `accelaes-export build --model NAME` means
    published/PAPER.yaml    what a paper's tables print, to be shown apart from measured figures
    checkpoints/NAME/       a checkpoint that ships with the package, in diffusers format

Code reads them through `accelaes_export.recipes` and `accelaes_export.measure.quality.published`, which find them with
importlib.resources.
"""
