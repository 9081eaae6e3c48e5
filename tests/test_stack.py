"""A Prefect of our own: what it takes from its surroundings, and what it leaves alone."""

from __future__ import annotations

import pytest

from sandbox.stack import Stack


def test_the_users_own_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's profile nor their settings nor their keys reach what is started here."""
    monkeypatch.setenv("PREFECT_PROFILE", "production")
    monkeypatch.setenv("PREFECT_API_KEY", "secret-of-production")
    monkeypatch.setenv("OPENROUTER_MANAGEMENT_KEY", "sk-or-v1-real")
    stack = Stack()

    env = stack.env

    assert "secret-of-production" not in env.values()
    assert "sk-or-v1-real" not in env.values()
    assert "PREFECT_PROFILE" not in env
    assert env["PREFECT_HOME"].startswith(str(stack.home))
    assert env["PREFECT_PROFILES_PATH"].startswith(str(stack.home))
    stack.stop()
    assert not stack.home.exists()
