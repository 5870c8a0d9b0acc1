"""How long a campaign goes on: a sample of some seconds in every test run, or the whole (make campaigns)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

WHOLE = os.environ.get("ACCELAES_CAMPAIGN") == "whole"
SECONDS = 4.0


def attempts(count: int) -> Iterator[random.Random]:
    """A source of chance for every attempt, the same each time; `count` of them in a whole campaign.

    A sample begins elsewhere every day, so that in time it covers more than the first attempts, and says where.
    """
    first = 0 if WHOLE else int(time.time() // 86400) * 1000
    started = time.monotonic()
    for k in range(first, first + count):
        if not WHOLE and time.monotonic() - started > SECONDS:
            return
        yield random.Random(k)
