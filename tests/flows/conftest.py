"""Fixtures of the tests of the flows."""

from __future__ import annotations

import logging

import pytest

from flows import slot
from tests.flows.limits import FakeLimits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> FakeLimits:
    """A server without limits and without other runs."""
    made = FakeLimits()
    monkeypatch.setattr(slot, "watched_client", lambda: made)
    monkeypatch.setattr(slot, "get_run_logger", lambda: logging.getLogger("tests.slot"))
    for name in ("note_waiting", "runs_at_work", "sent_once"):
        monkeypatch.setattr(slot, name, getattr(made, name))
    return made
