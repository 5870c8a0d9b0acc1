"""What the plugin raises on purpose. It imports nothing of the rest of the package, so it has errors of its own."""

from __future__ import annotations


class PluginError(RuntimeError):
    """A kernel that didn't compile, a library that didn't load; the message says what to do."""


class MissingError(PluginError):
    """Triton, a driver, a library or a compiled kernel that this needs and that isn't there."""
