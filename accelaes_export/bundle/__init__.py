"""A folder with an engine: opened, checked, signed, written."""
