"""A few hundred histories for `make test`; `make simulate` runs any number."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.simulation.machine import Histories

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200, method="thread")]

Histories.TestCase.settings = settings(
    max_examples=300, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase
