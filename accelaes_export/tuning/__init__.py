"""Tuning: what is hand-made in a plan is learned for one checkpoint. Nothing at run time loads this room."""
