"""Tests on a GPU: `make test-gpu`. Without one they are skipped, and say so.

ACCELAES_GPU_TESTS=cpu runs on the CPU whatever doesn't need a GPU by its nature: to see that the tests themselves work.
"""

from __future__ import annotations

import os

import pytest
import torch

ON_CPU = os.environ.get("ACCELAES_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.parent.name == "gpu"]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available() and not (ON_CPU and "device" in item.fixturenames):
            item.add_marker(pytest.mark.skip(reason="there is no GPU here that torch can use"))


@pytest.fixture(scope="session")
def device():
    """The GPU, or the CPU in place of it."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(scope="session")
def cuda():
    """The GPU; tests that ask for it have no meaning elsewhere."""
    return torch.device("cuda", 0)
