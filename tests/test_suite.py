"""The suite itself: what it relies on of its own tools."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests aren't spread over workers here")
def test_the_tests_of_a_file_keep_to_one_worker_which_makes_their_fixtures_once(request):
    assert request.node.nodeid.endswith("@tests/test_suite.py"), "this pytest-xdist doesn't group under this pytest"
