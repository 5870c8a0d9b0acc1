"""Recipes and the shipped checkpoint, installed as `accelaes_export.engines` package data.

    recipes/NAME.yaml       what `accelaes-export build --model NAME` means
    checkpoints/NAME/       a checkpoint that ships with the package, in diffusers format

Code reads them through `accelaes_export.recipes`, which finds them with importlib.resources.
"""
