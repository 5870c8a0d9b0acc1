"""Consoles: results go to stdout, progress to stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from typing import TextIO

# A pipe or a log has no width; tables are laid out for this one, unless $COLUMNS says otherwise.
_WIDTH_OF_FILES = 120


def results() -> Console:
    """Standard output as it is now (tests and pipes may have replaced it)."""
    return _console(sys.stdout)


def progress_lines() -> Console:
    """Standard error."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    wide = None if file.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(file=file, width=wide, highlight=False, markup=False, emoji=False)


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' loading bars and hints out of our output; their errors still raise.

    Downloads from a hub keep their own bar. Loads both packages: call it when they are needed anyway.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    silent_hub = are_progress_bars_disabled()
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    if not silent_hub:  # transformers' switch turns the hub's bars off as well
        enable_progress_bars()
