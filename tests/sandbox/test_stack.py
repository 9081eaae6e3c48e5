"""The isolation of the sandbox's Prefect server from the user's environment and from other servers."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandbox.server import running
from sandbox.stack import Stack


def test_the_users_own_prefect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's profile nor the keys in their environment reach the processes of a stack."""
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


@pytest.mark.e2e
def test_another_server_on_the_port_is_not_taken_for_ours() -> None:
    """A stack must not use another server that already listens on its port; its start fails instead."""

    async def settings(_request: object) -> JSONResponse:
        return JSONResponse({"home": "/home/somebody/.prefect"})

    other = Starlette(routes=[Route("/api/{rest:path}", settings)])

    with running(other) as url, pytest.raises(RuntimeError, match="did not start"), Stack(port=urlsplit(url).port):
        pass
